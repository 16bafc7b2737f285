"""Where problems come from: the built-in generator, its dataset, the oracle that judges lines."""

from prm_jax.problems.sets import ProblemSets, load_problems

__all__ = ["ProblemSets", "load_problems"]
