"""Where problems come from: the built-in generator, benchmarks, files of one's own, the oracle."""

from prm_jax.problems.benchmarks import Benchmark, read_problems
from prm_jax.problems.oracle import first_error
from prm_jax.problems.rows import BadRow, ProblemsError
from prm_jax.problems.sets import BUILT_IN, ProblemSets, data_folder, load_problems

__all__ = [
    "BUILT_IN",
    "BadRow",
    "Benchmark",
    "ProblemSets",
    "ProblemsError",
    "data_folder",
    "first_error",
    "load_problems",
    "read_problems",
]
