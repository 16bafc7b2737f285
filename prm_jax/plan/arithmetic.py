"""How many operations a program needs: those of its matrix products, read from its jaxpr.

What the compiler makes of the program does not matter, so recomputation that the program asks for
counts, and work that the compiler repeats on several chips does not.
"""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(jaxpr: Any, *, most_trips: int = 1) -> float:
    """2 x multiply-adds of all products in a jaxpr, over all chips, each as often as it runs.

    A loop that ends when its data say so counts as `most_trips`, and one around it once; of
    branches the costliest. A kernel counts as what it says of itself.
    """
    return sum(_of_equation(eqn, most_trips) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any, most: int) -> float:
    params = eqn.params
    match eqn.primitive.name:
        case "dot_general":
            return _product(eqn)
        case "scan":
            return params["length"] * flops(params["jaxpr"].jaxpr, most_trips=most)
        case "while":
            body = params["body_jaxpr"].jaxpr
            return (1 if _has_loop(body) else most) * flops(body, most_trips=most)
        case "cond":
            return max(flops(branch.jaxpr, most_trips=most) for branch in params["branches"])
        case "shard_map":
            # Its shapes are those of one chip.
            chips = math.prod(params["mesh"].shape.values())
            return chips * flops(params["jaxpr"], most_trips=most)
        case "pallas_call":
            return _kernel(eqn)
    inner = [x for value in params.values() for x in _jaxprs(value)]
    # custom_vjp carries its rules as functions, and only what it computes as a jaxpr.
    return sum(flops(x, most_trips=most) for x in inner)


def _has_loop(jaxpr: Any) -> bool:
    """Whether there is a loop of products in it that ends when its data say so."""
    return any(
        (eqn.primitive.name == "while" and flops(eqn.params["body_jaxpr"].jaxpr) > 0)
        or any(_has_loop(x) for value in eqn.params.values() for x in _jaxprs(value))
        for eqn in jaxpr.eqns
    )


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return []


def _product(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * summed * math.prod(eqn.outvars[0].aval.shape)


def _kernel(eqn: Any) -> float:
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None:
        return float(estimate.flops)
    grid = eqn.params["grid_mapping"].grid
    return math.prod(int(n) for n in grid) * flops(eqn.params["jaxpr"])
