"""The built-in problems: what a test catches, what is kept apart, and what comes back from disk."""

import dataclasses
import os
import pickle
import random
import re
import shutil
import subprocess
import sys

import pytest

from prm_jax.config import ChainsConfig, ConfigError, ProblemsConfig
from prm_jax.problems import data_folder, load_problems
from prm_jax.problems import sets as problem_sets
from prm_jax.problems.chains import generator
from prm_jax.problems.chains.operations import OPERATIONS, WORDINGS, Step
from prm_jax.types import Limits, Problem

SMALL = ChainsConfig(seed=3, sft_pairs=300, train=12, validation=6, test=12)
SPLITS = ("train", "validation", "test", "test_long")


def passes(problem: Problem, completion: str) -> bool:
    """Runs a program of this project's own generator against its asserts, in this process."""
    scope: dict = {}
    try:
        exec(problem.program(completion), scope)
        for test in problem.tests.asserts:  # type: ignore[union-attr]
            exec(test, scope)
    except Exception:
        return False
    return True


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("problems")


@pytest.fixture(scope="module")
def sets(data_dir):
    return load(SMALL, data_dir, Limits(cpu_s=0.5))


def load(settings: ChainsConfig, data_dir, limits: Limits):
    return load_problems(ProblemsConfig(chains=settings), data_dir, limits)


def split_of(sets, name: str) -> list[Problem]:
    return sets.held_out[name] if name in sets.held_out else getattr(sets, name)


def computed(chain: generator.Chain) -> tuple:
    """What a chain computes, whatever its names and wordings."""
    return tuple((step.operation, step.number) for step in chain.steps)


def all_problems(sets) -> list[Problem]:
    return [problem for split in SPLITS for problem in split_of(sets, split)]


# -------------------------------------------------------------------------------- the operations


def test_each_operation_does_what_its_words_say():
    values = [3, -1, 4, 2, 2, 8]
    expected = {
        "drop_first": [4, 2, 2, 8],
        "drop_last": [3, -1, 4, 2],
        "repeat": [3, -1, 4, 2, 2, 8, 3, -1, 4, 2, 2, 8],
        "append": [3, -1, 4, 2, 2, 8, 2],
        "prepend": [2, 3, -1, 4, 2, 2, 8],
        "add": [5, 1, 6, 4, 4, 10],
        "subtract": [1, -3, 2, 0, 0, 6],
        "subtract_from": [-1, 3, -2, 0, 0, -6],
        "multiply": [6, -2, 8, 4, 4, 16],
        "add_position": [3, 0, 6, 5, 6, 13],
        "negate": [-3, 1, -4, -2, -2, -8],
        "absolute": [3, 1, 4, 2, 2, 8],
        "at_least": [3, 2, 4, 2, 2, 8],
        "above": [3, 4, 8],
        "below": [-1],
        "even": [4, 2, 2, 8],
        "odd": [3, -1],
        "every_other": [3, 4, 2],
        "reverse": [8, 2, 2, 4, -1, 3],
        "ascending": [-1, 2, 2, 3, 4, 8],
        "descending": [8, 4, 3, 2, 2, -1],
    }
    assert {name: op.apply(values, 2) for name, op in OPERATIONS.items()} == expected


def test_the_text_of_an_expression_computes_what_the_operation_does():
    rng = random.Random(0)
    for operation in OPERATIONS.values():
        for number in operation.numbers:
            step = Step(operation.name, number, "easy")
            a = rng.choices(range(-9, 21), k=14)
            assert eval(step.expression("a"), {"a": a}) == operation.apply(a, number)
            for text, wrong in zip(
                step.confused_expressions("a"), operation.apply_confused, strict=True
            ):
                assert eval(text, {"a": a}) == wrong(a, number)


def test_wordings_are_distinct_and_say_the_number():
    said = [words for operation in OPERATIONS.values() for words in operation.words]
    assert len(set(said)) == len(OPERATIONS) * len(WORDINGS) == 63
    for operation in OPERATIONS.values():
        assert len(operation.confusions) >= 2
        for words in operation.words:
            assert ("{n}" in words) == (operation.numbers != (0,))


# ---------------------------------------------------------------------------------- the problems


def test_solutions_pass_and_have_one_line_per_step(sets):
    for problem in all_problems(sets):
        assert passes(problem, problem.solution), problem
        assert len(problem.solution.split("\n")) == problem.horizon
        assert len(problem.prompt.split("\n")) == problem.horizon + 2
        assert problem.prompt.endswith(problem.program_prefix)
        assert not problem.solution.endswith("\n")


def test_tests_catch_every_confusion_and_every_skipped_step(sets):
    mistakes = 0
    for problem in all_problems(sets):
        chain = sets.asked[problem.task_id]
        lines = problem.solution.split("\n")
        for k, (step, name) in enumerate(zip(chain.steps, chain.names, strict=True)):
            head = lines[k].removesuffix(step.expression(name))
            assert head != lines[k]
            for wrong in (*step.confused_expressions(name), name):
                completion = "\n".join([*lines[:k], head + wrong, *lines[k + 1 :]])
                assert not passes(problem, completion), (problem, completion)
                mistakes += 1
    assert mistakes > 500


def test_a_test_that_cannot_see_a_mistake_is_refused():
    steps = (Step("reverse", 0, "easy"), Step("ascending", 0, "easy"))
    # Sorting hides whether the list was reversed.
    assert not generator.tests_catch_every_confusion(steps, [[3, 1, 2, -5]])
    # A palindrome is its own reverse.
    one = (Step("reverse", 0, "easy"),)
    assert not generator.tests_catch_every_confusion(one, [[1, 2, 1]])
    assert generator.tests_catch_every_confusion(one, [[1, 2, 1], [1, 3, 2]])
    # One input catches the first confusion, the other input the second.
    absolute = (Step("absolute", 0, "easy"),)
    assert not generator.tests_catch_every_confusion(absolute, [[1, 2]])
    assert not generator.tests_catch_every_confusion(absolute, [[-1, -2]])
    assert generator.tests_catch_every_confusion(absolute, [[1, 2], [-1, -2]])


def test_two_mistakes_that_undo_each_other_are_refused():
    # 4 - (4 - v) is v, as is v - 4 + 4; each alone is caught.
    steps = (Step("subtract", 4, "easy"), Step("add", 4, "easy"), Step("subtract", 4, "easy"))
    inputs = [[3, 1, 2, -5, 9]]
    assert generator.tests_catch_every_confusion(steps, inputs)
    # v + 4 - 4 - 4 is v - 4 + 4 - 4: the first two steps, both mistaken.
    assert not generator.tests_catch_every_pair(steps, inputs)
    assert generator.tests_catch_every_pair(steps[:1], inputs)


def test_tests_are_six_calls_on_short_lists(sets):
    for problem in all_problems(sets):
        asserts = problem.tests.asserts
        assert len(set(asserts)) == 6
        for text in asserts:
            found = re.fullmatch(r"assert f\((\[.*\])\) == (\[.*\])", text)
            assert found is not None
            values = eval(found[1])
            assert 12 <= len(values) <= 17 and all(-9 <= v <= 20 for v in values)


def test_splits_are_disjoint_by_program_and_by_test(sets):
    problems = all_problems(sets)
    assert len({p.task_id for p in problems}) == len(problems)
    assert len({computed(sets.asked[p.task_id]) for p in problems}) == len(problems)
    assert len({a for p in problems for a in p.tests.asserts}) == 6 * len(problems)


def test_no_sft_pair_asks_for_or_gives_a_problems_program():
    # Many short problems: without the check nearly every one would be among the pairs.
    config = dataclasses.replace(
        SMALL, sft_pairs=1000, sft_horizons=(1, 2), train_horizons=(1, 2), test_horizons=(1, 2)
    )
    problems = [p for split in generator.make_problems(config).values() for p in split]
    held_out = {computed(p.chain) for p in problems}
    programs = {p.chain.program() for p in problems}
    pairs = list(generator.make_sft_pairs(config, problems))
    assert len(pairs) == 1000
    unchecked = list(generator.make_sft_pairs(config, []))
    assert any(computed(pair.chain) in held_out for pair in unchecked)
    for pair in pairs:
        assert computed(pair.chain) not in held_out
        code = [
            line
            for line in pair.completion.split("\n")
            if line.strip() != "pass" and not line.strip().startswith("#")
        ]
        names = dict(zip(pair.chain.names, generator.NAMES, strict=False))
        words = re.split(r"\b", "\n".join(code))
        renamed = "".join(names.get(word, word) for word in words)
        assert renamed not in programs


def test_splits_are_balanced_over_their_horizons(sets):
    ranges = {
        "train": SMALL.train_horizons,
        "validation": SMALL.train_horizons,
        "test": SMALL.test_horizons,
        "test_long": SMALL.long_horizons,
    }
    for split, (low, high) in ranges.items():
        counts = dict.fromkeys(range(low, high + 1), 0)
        for problem in split_of(sets, split):
            counts[problem.horizon] += 1
        assert max(counts.values()) - min(counts.values()) <= 1
    longest_in_training = max(p.horizon for p in sets.train)
    assert min(p.horizon for p in sets.held_out["test_long"]) > longest_in_training


def test_names_of_long_problems_occur_in_short_pairs():
    pairs = list(generator.make_sft_pairs(dataclasses.replace(SMALL, sft_pairs=2000), []))
    longest = generator.NAMES[: SMALL.long_horizons[1]]
    for name in longest[1:]:
        assert any(f"    {name} = " in pair.completion for pair in pairs)


def test_difficulty_counts_hard_wordings(sets):
    for problem in all_problems(sets):
        hard = sum(step.wording == "hard" for step in sets.asked[problem.task_id].steps)
        assert problem.difficulty == f"{hard} hard"


# -------------------------------------------------------------------------------------- SFT pairs


def test_sft_mistakes_have_the_shares_that_the_wordings_ask_for():
    config = dataclasses.replace(SMALL, sft_pairs=3000)
    right = dict.fromkeys(WORDINGS, 0)
    total = dict.fromkeys(WORDINGS, 0)
    dominant = 0
    extras = lines = 0
    for pair in generator.make_sft_pairs(config, []):
        written = pair.completion.split("\n")
        code = [x for x in written if x.strip() != "pass" and not x.strip().startswith("#")]
        extras += len(written) - len(code)
        lines += len(written)
        for step, name, line in zip(pair.chain.steps, pair.chain.names, code, strict=True):
            expression = line.removeprefix("    return ").split(" = ")[-1]
            total[step.wording] += 1
            right[step.wording] += expression == step.expression(name)
            dominant += expression == step.confused_expressions(name)[0]
    steps = sum(total.values())
    share = {w: total[w] / steps for w in WORDINGS}
    assert share == pytest.approx({"easy": 0.5, "medium": 0.25, "hard": 0.25}, abs=0.02)
    found = {w: right[w] / total[w] for w in WORDINGS}
    assert found == pytest.approx({"easy": 0.97, "medium": 0.7, "hard": 0.3}, abs=0.03)
    assert dominant / (steps - sum(right.values())) == pytest.approx(0.7, abs=0.03)
    assert 0.02 < extras / lines < 0.06


def test_a_plan_by_hand():
    chain = generator.Chain(
        (Step("drop_first", 2, "hard"), Step("reverse", 0, "medium"), Step("repeat", 3, "easy")),
        "abc",
    )
    assert chain.plan() == "drop first 2\nreverse\nrepeat 3 times"
    templates = ["{x}[{m}:]", "sorted({x}, reverse=True)", "{x} + [{n}]"]
    assert chain.plan(templates) == "drop first 3\nsort down\nappend 3"
    # These compute nothing that an operation is called by: slips of the line, not of the plan.
    assert chain.plan(["{x}[:{n}]", "{x}[::-1]", "{x} * {n}"]) == chain.plan()


def test_sft_code_carries_out_its_plan_but_for_slips():
    words = {
        operation.words[0].format(n=n): operation.expression.format(x="{x}", n=n)
        for operation in OPERATIONS.values()
        for n in range(1, 10)
    }
    slips = lines = wrong_plans = 0
    for pair in generator.make_sft_pairs(dataclasses.replace(SMALL, sft_pairs=2000), []):
        written = pair.completion.split("\n")
        code = [x for x in written if x.strip() != "pass" and not x.strip().startswith("#")]
        plan = pair.plan.split("\n")
        for step, name, said, line in zip(
            pair.chain.steps, pair.chain.names, plan, code, strict=True
        ):
            expression = line.removeprefix("    return ").split(" = ")[-1]
            asked = OPERATIONS[step.operation].words[0].format(n=step.number)
            lines += 1
            wrong_plans += said != asked
            if expression != words[said].replace("{x}", name):
                slips += 1  # the plan says what was asked, and no plan says what the line does
                assert said == asked
                assert expression not in {text.replace("{x}", name) for text in words.values()}
    assert 0.02 < slips / lines < 0.2 and 0.1 < wrong_plans / lines < 0.3


def test_sft_pairs_are_mostly_short(sets):
    horizons = [prompt.count("\n") - 1 for prompt in (p.prompt for p in sets.sft)]
    assert min(horizons) == 1 and max(horizons) == 8
    assert sum(h <= 4 for h in horizons) > 0.6 * len(horizons)


# ----------------------------------------------------------------------------- seeds and refusals


def test_the_seed_decides_everything_and_the_process_nothing():
    config = dataclasses.replace(SMALL, sft_pairs=50)
    made = generator.make_problems(config)
    pairs = list(generator.make_sft_pairs(config, made["test"]))
    code = (
        "from prm_jax.problems.chains import generator as g;"
        f"from prm_jax.config import ChainsConfig; c = {config!r};"
        "p = g.make_problems(c); print(repr((p, list(g.make_sft_pairs(c, p['test'])))))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.rstrip("\n") == repr((made, pairs))
    other = dataclasses.replace(SMALL, seed=4)
    keys = {computed(p.chain) for p in generator.make_problems(SMALL)["train"]}
    others = {computed(p.chain) for p in generator.make_problems(other)["train"]}
    assert len(keys & others) < len(keys) / 4


def test_more_of_one_set_leaves_train_as_it_is():
    more = dataclasses.replace(SMALL, test=18, sft_pairs=10)
    assert generator.make_problems(more)["train"] == generator.make_problems(SMALL)["train"]


def test_impossible_settings_are_refused_with_their_name():
    with pytest.raises(ConfigError, match=r"long_horizons = \(9, 40\).*21"):
        generator.make_problems(dataclasses.replace(SMALL, long_horizons=(9, 40)))
    with pytest.raises(ConfigError, match="train has .* of 500 .* 1 to 1 lines"):
        generator.make_problems(dataclasses.replace(SMALL, train=500, train_horizons=(1, 1)))


# ----------------------------------------------------------------------------------- the dataset


def test_what_is_read_is_what_was_made(sets):
    made = generator.make_problems(SMALL)
    for split in SPLITS:
        read = split_of(sets, split)
        assert [p.solution for p in read] == [p.chain.solution() for p in made[split]]
        assert [p.prompt for p in read] == [p.chain.prompt() for p in made[split]]
        assert [p.tests for p in read] == [p.tests for p in made[split]]
        assert [p.plan for p in read] == [p.chain.plan() for p in made[split]]
        assert [sets.asked[p.task_id] for p in read] == [p.chain for p in made[split]]
        assert all(p.limits == Limits(cpu_s=0.5) for p in read)
    pairs = generator.make_sft_pairs(SMALL, [p for split in made.values() for p in split])
    assert [(p.prompt, p.solution, p.plan) for p in sets.sft] == [
        (pair.chain.prompt(), pair.completion, pair.plan) for pair in pairs
    ]


def test_pairs_are_a_sequence(sets):
    assert len(sets.sft) == 300
    everything = list(sets.sft)
    assert sets.sft[7] == everything[7] and sets.sft[-1] == everything[-1]
    assert sets.sft[10:13] == everything[10:13] and sets.sft[5:5] == []
    with pytest.raises(IndexError):
        sets.sft[300]


def test_problems_cross_a_process_boundary(sets):
    assert pickle.loads(pickle.dumps(sets.held_out["test"])) == sets.held_out["test"]


def test_a_second_load_reads_the_same_and_prepares_nothing(sets, data_dir, monkeypatch):
    def refuse(*args):
        raise AssertionError("prepared again")

    monkeypatch.setattr(generator, "make_problems", refuse)
    again = load(SMALL, data_dir, Limits(cpu_s=0.5))
    assert again.held_out["test"] == sets.held_out["test"] and again.asked == sets.asked
    assert list(again.sft) == list(sets.sft)


def test_built_in_sets_lie_in_one_folder_for_each_generator(tmp_path, monkeypatch):
    monkeypatch.setattr(problem_sets, "GENERATED", tmp_path / "shared")
    beside = tmp_path / "beside"
    folders = {name: data_folder(name, beside) for name in ("chains", "branches", "human_eval")}
    assert folders["chains"].parent == folders["branches"].parent == tmp_path / "shared"
    assert len(set(folders.values())) == 3 and folders["human_eval"] == beside
    assert data_folder("chains", beside) == folders["chains"]
    (tmp_path / "file").touch()
    monkeypatch.setattr(problem_sets, "GENERATED", tmp_path / "file")  # no folder can be made here
    assert data_folder("chains", beside) == beside


def test_other_settings_do_not_share_files(sets, data_dir):
    other = load(dataclasses.replace(SMALL, test=3, sft_pairs=5), data_dir, Limits())
    assert len(other.held_out["test"]) == 3 and len(other.sft) == 5
    assert load(SMALL, data_dir, Limits(cpu_s=0.5)).held_out["test"] == sets.held_out["test"]


def test_a_kill_while_preparing_leaves_nothing_that_is_read(sets, tmp_path):
    code = (
        "import os, sys; from pathlib import Path;"
        "from prm_jax.config import ChainsConfig, ProblemsConfig;"
        "from prm_jax.problems.chains import generator as g;"
        "from prm_jax.problems import load_problems; from prm_jax.types import Limits;"
        "make = g.make_sft_pairs\n"
        "def die(*a):\n"
        "    for i, pair in enumerate(make(*a)):\n"
        "        if i == 200: os._exit(9)\n"
        "        yield pair\n"
        "g.make_sft_pairs = die\n"
        "c = ChainsConfig(seed=3, sft_pairs=300, train=12, validation=6, test=12)\n"
        "load_problems(ProblemsConfig(chains=c), Path(sys.argv[1]), Limits())"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert killed.returncode == 9
    assert any(tmp_path.rglob("*incomplete*"))
    again = load(SMALL, tmp_path, Limits(cpu_s=0.5))
    assert list(again.sft) == list(sets.sft) and again.held_out["test"] == sets.held_out["test"]
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", ["chains", "branches"])
def test_preparing_needs_no_tensorflow_and_prints_nothing(tmp_path, name):
    code = (
        "import sys; from pathlib import Path;"
        f"from prm_jax.config import {name.title()}Config as Config, ProblemsConfig;"
        "from prm_jax.problems import load_problems; from prm_jax.types import Limits;"
        "c = Config(sft_pairs=5, train=3, validation=3, test=6);"
        f"load_problems(ProblemsConfig(name={name!r}, {name}=c), Path(sys.argv[1]), Limits());"
        "assert 'tensorflow' not in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
    assert "WARNING" not in run.stderr and "Downloading" not in run.stderr


# ------------------------------------------------------------------------------ the final problems


def test_final_problems_are_apart_from_all_others_and_change_none_of_them(tmp_path, sets):
    settings = dataclasses.replace(SMALL, final=6)
    problems = ProblemsConfig(chains=settings, held_out="final")
    final = load_problems(problems, tmp_path, Limits(cpu_s=0.5))
    assert list(final.held_out) == ["final"] and len(final.held_out["final"]) == 6
    assert list(final.train) == list(sets.train)
    before = {computed(sets.asked[p.task_id]) for p in all_problems(sets)}
    ours = {computed(final.asked[p.task_id]) for p in final.held_out["final"]}
    assert len(ours) == 6 and not before & ours
    assert {p.horizon for p in final.held_out["final"]} == set(range(3, 9))
    development = load(settings, tmp_path, Limits(cpu_s=0.5))
    assert dict(development.held_out) == dict(sets.held_out)
    asked = {p.prompt for p in [*all_problems(sets), *final.held_out["final"]]}
    assert asked.isdisjoint({pair.prompt for pair in final.sft})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"held_out": "final"}, "chains.final = 0"),
        ({"held_out": "final", "name": "mbpp:x"}, "held_out = 'final'"),
        ({"held_out": "test"}, "held_out = 'test'.*development"),
    ],
)
def test_final_problems_that_are_not_there_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ProblemsConfig(**fields)
