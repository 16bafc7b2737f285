"""Where problems come from: the built-in generator, its dataset, the oracle that judges lines."""

from prm_jax.problems.oracle import first_error
from prm_jax.problems.sets import ProblemSets, load_problems

__all__ = ["ProblemSets", "first_error", "load_problems"]
