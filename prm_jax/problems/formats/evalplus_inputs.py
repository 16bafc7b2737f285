"""Which arguments of MBPP+ are tuples, sets or complex numbers: JSON has none of them.

EvalPlus publishes the inputs as JSON and says in its code, task by task, what they were.
"""

from typing import Any

Input = list[Any]  # the arguments of one call


def typed_inputs(task_id: str, inputs: list[Input]) -> list[Input]:
    """The inputs as the task takes them; raises TypeError and others where they do not fit."""
    if not task_id.startswith("Mbpp/"):
        return inputs
    number = int(task_id.removeprefix("Mbpp/"))
    return [list(_typed(number, arguments)) for arguments in inputs]


def _typed(task: int, given: Input) -> list[Any] | tuple[Any, ...]:
    match task:
        case (
            2 | 116 | 132 | 143 | 222 | 261 | 273 | 394 | 399 | 421 | 424 | 429 | 470 | 560 | 579
            | 596 | 616 | 630 | 726 | 740 | 744 | 809
        ):  # fmt: skip
            return [tuple(x) for x in given]
        case (
            63 | 64 | 70 | 94 | 120 | 237 | 272 | 299 | 400 | 409 | 417 | 438 | 473 | 614 | 780
        ):  # fmt: skip
            return [_tuples(x) for x in given]
        case 75 | 413 | 444 | 753:
            return [_tuples(given[0]), given[1]]
        case 106 | 750:
            return [given[0], tuple(given[1])]
        case 115:
            return [[set(x) if isinstance(x, list) and x else {} for x in given[0]]]
        case 124:
            return [float(given[0]), complex(given[1])]
        case 250 | 307 | 405 | 446 | 617 | 720 | 763 | 808:
            return [tuple(given[0]), *given[1:]]
        case 252:
            return [complex(given[0])]
        case 259 | 401 | 445:
            return [tuple(_tuples(x)) for x in given]
        case 278:
            return [tuple(tuple(x) if isinstance(x, list) else x for x in given[0])]
        case 580 | 615 | 791:
            return [_all_tuples(x) for x in given]
        case 722:
            return [{name: tuple(x) for name, x in given[0].items()}, *given[1:]]
    return given


def _tuples(rows: list[Any]) -> list[Any]:
    return [tuple(row) for row in rows]


def _all_tuples(value: Any) -> Any:
    return tuple(map(_all_tuples, value)) if isinstance(value, list) else value
