"""EvalPlus (Liu et al. 2023, arXiv 2305.01210): HumanEval and MBPP with many more inputs.

Fields: task_id, prompt, entry_point, canonical_solution, base_input, plus_input, atol, contract.
What an input must give is what the reference gives. The reference becomes part of the test code,
which runs apart from the program: nothing that the program does can change what is expected. The
contract says which inputs are meant; the published ones all keep to it, so it is not used. The
tables on Hugging Face have finished test code (`test`) instead.
"""

import ast
import dataclasses
import re
from typing import Any

from prm_jax.problems.formats import human_eval, mbpp, words
from prm_jax.problems.formats.evalplus_inputs import typed_inputs
from prm_jax.problems.formats.literals import literal
from prm_jax.problems.rows import Row
from prm_jax.sandbox.core import identifiers
from prm_jax.types import CheckTests, Limits, Problem

# Of all inputs together; EvalPlus gives each at least a second, and all of them at most 60.
# Some inputs and answers have millions of characters.
_LIMITS = Limits(cpu_s=10.0, memory_mib=1024, output_bytes=16 << 20)

# The comparison of EvalPlus: equal, or for floats within atol + 1e-7 |expected| with equal types.
_CHECK = """
import copy

REFERENCE = {reference}
INPUTS = {inputs}
ATOL = {atol}

def load(source, name):
    names = {{}}
    exec(compile(source, "<reference>", "exec"), names)
    return names[name]

def all_float(x):
    if isinstance(x, (list, tuple)) and x:
        return all(isinstance(i, float) for i in x)
    return isinstance(x, float)

def close(x, y, atol):
    if isinstance(y, (list, tuple)):
        pairs = isinstance(x, (list, tuple)) and len(x) == len(y)
        return pairs and all(close(a, b, atol) for a, b in zip(x, y))
    return x == y or abs(x - y) <= atol + 1e-7 * abs(y)

def same(actual, expected, arguments):
{special}    if actual == expected:
        return True
    atol = ATOL or (1e-6 if all_float(expected) else 0)
    return bool(atol) and type(actual) == type(expected) and close(actual, expected, atol)

def check(candidate):
    reference = load(REFERENCE, {entry_point})
    for arguments in INPUTS:
        expected = reference(*copy.deepcopy(arguments))
        actual = candidate(*copy.deepcopy(arguments))
        assert same(actual, expected, arguments), f"wrong for {{arguments!r:.200}}"
"""

# Where more than the reference's answer is right: EvalPlus's own exceptions, by entry point. It
# also lets everything pass at are_equivalent, and 0 at sum_div, which is no test: those two are
# compared like all others.
_ROOT = """    xs, = arguments
    return abs(sum(c * actual ** i for i, c in enumerate(xs))) <= ATOL
"""
_SURFACE = """    base, height = arguments
    slant = ((base / 2) ** 2 + height**2) ** 0.5
    if abs(actual - round(base**2 + 2 * base * slant)) <= ATOL:
        return True
"""
_DIGITS = """    a, b = map(str, arguments)
    width = max(len(a), len(b))
    digits = zip(a.zfill(width), b.zfill(width))
    if actual == sum(abs(int(x) - int(y)) for x, y in digits):
        return True
"""
_SETS = """    return set(actual) == set(expected)
"""
_FOUND = """    found = actual if isinstance(actual, bool) else actual is not None
    return found == (expected is not None)
"""


def problem(row: Row) -> Problem:
    """A problem of HumanEval+ or MBPP+; raises BadRow."""
    if not row.has("base_input"):
        return _from_hub(row)
    of_mbpp = row.name("task_id").startswith("Mbpp/")
    prompt = row.text("prompt")
    solution = row.text("canonical_solution")
    entry_point = row.text("entry_point")
    prefix = "" if of_mbpp else prompt
    task = prompt.strip().strip('"').strip()
    return Problem(
        task_id=row.name("task_id"),
        prompt=prompt,
        tests=CheckTests(_check(row, prefix + solution, entry_point), entry_point),
        solution=solution.rstrip() + "\n",
        program_prefix=prefix,
        instruction=_instruction(task) if of_mbpp else human_eval.instruction(prompt),
        horizon=words.horizon(solution),
        limits=_LIMITS,
    )


def split(row: Row) -> str:
    """All of EvalPlus is for testing."""
    return "test"


def _check(row: Row, reference: str, entry_point: str) -> str:
    inputs = _inputs(row, "base_input") + _inputs(row, "plus_input")
    atol = row.fields.get("atol") or 0
    if isinstance(atol, bool) or not isinstance(atol, int | float) or atol < 0:
        raise row.wrong("atol", "a number, at least 0")
    task_id = row.name("task_id")
    try:
        typed = typed_inputs(task_id, inputs)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise row.wrong("base_input", f"what {task_id} takes ({error})") from error
    return _CHECK.format(
        reference=literal(reference),
        inputs=literal(typed),
        atol=literal(atol),
        entry_point=literal(entry_point),
        special=_special(entry_point, task_id.startswith("Mbpp/")),
    )


def _inputs(row: Row, name: str) -> list[list[Any]]:
    allowed = "a list of argument lists"
    value = row.fields.get(name, [])
    if value == {} or value == "":  # how the published files write that there are none
        value = []
    if not isinstance(value, list) or not all(isinstance(item, list) for item in value):
        raise row.wrong(name, allowed)
    if name == "base_input" and not value:
        raise row.wrong(name, f"{allowed}, not empty")
    return value


def _special(entry_point: str, of_mbpp: bool) -> str:
    """What `same` does before it compares, for the few problems that need it."""
    match entry_point:
        case "find_zero" if not of_mbpp:
            return _ROOT
        case "surface_Area" if of_mbpp:
            return _SURFACE
        case "digit_distance_nums" if of_mbpp:
            return _DIGITS
        case (
            "similar_elements"
            | "find_char_long"
            | "common_in_nested_lists"
            | "extract_singly"
            | "larg_nnum"
            | "intersection_array"
            | "find_dissimilar"
            | "Diff"
        ) if of_mbpp:
            return _SETS
        case "check_str" | "text_match_three" | "text_starta_endb" if of_mbpp:
            return _FOUND
    return ""


def _instruction(task: str) -> str:
    """A task of MBPP+, whose docstring has the text and then its asserts."""
    text, *tests = re.split(r"^(?=assert )", task, flags=re.MULTILINE)
    return (
        mbpp.instruction(text, tuple(test.strip() for test in tests))
        if tests
        else (words.function_instruction(text))
    )


# ----------------------------------------------------------------- the tables on Hugging Face


def _from_hub(row: Row) -> Problem:
    """HumanEval+ has HumanEval's columns there; MBPP+ has MBPP's, and a script of tests."""
    if row.has("canonical_solution"):
        return dataclasses.replace(human_eval.problem(row), limits=_LIMITS)
    found = mbpp.problem(row)
    return dataclasses.replace(found, tests=_script_as_check(row, found), limits=_LIMITS)


def _script_as_check(row: Row, problem: Problem) -> CheckTests:
    """A script that calls the program's function by name, as a check that is given it."""
    script = row.text("test")
    try:
        body = identifiers.parse(script).body
        defined = {getattr(node, "name", None) for node in identifiers.parse(problem.solution).body}
        wanted = [name for name in identifiers.free_names(script) if name in defined]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise row.wrong("test", f"Python that can be read ({error})") from error
    if len(wanted) != 1:
        raise row.wrong("test", f"code that calls one function of `code`, not {wanted}")
    kept = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.Assign
    steps = [node for node in body if not isinstance(node, kept)]
    if not steps:
        raise row.wrong("test", "code that tests something")
    lines = "\n".join(map(ast.unparse, steps)).splitlines()
    code = "\n".join(ast.unparse(node) for node in body if isinstance(node, kept))
    code += f"\n\ndef check({wanted[0]}):\n" + "".join(f"    {line}\n" for line in lines)
    return CheckTests(code, wanted[0])
