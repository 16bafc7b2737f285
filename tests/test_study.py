"""The runs of a study: which stages are the same, and which studies are refused."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from made_up_study import ARMS, runs_of, study

from prm_jax.config import Config, ConfigError
from prm_jax.stages.run import Run
from prm_jax.study import Arm, load_study, with_settings
from prm_jax.study.runs import study_runs


def test_a_stage_is_shared_by_the_arms_that_agree_in_what_it_reads():
    runs = runs_of(study())
    base = runs["dense", 0]
    assert base.stages == ("sft", "rl", "label", "prm", "rl_prm")
    assert runs["perfect", 0].stages == ("sft", "rl_prm")  # no PRM, so no labels either
    assert runs["ppo", 0].stages == ("sft", "rl")
    for arm in ("sft", "ppo", "progress", "warm", "perfect"):
        for stage in set(runs[arm, 0].stages) - {"rl_prm"}:
            assert runs[arm, 0].keys[stage] == base.keys[stage], (arm, stage)
    assert len({runs[arm, 0].keys["rl_prm"] for arm in ("dense", "progress", "warm")}) == 3
    assert not set(base.keys.values()) & set(runs["dense", 1].keys.values())
    # Another critic's warm-up would change the baseline, so these stages are not its own to make.
    assert runs["warm", 0].made == {"sft", "rl_prm"}
    assert runs["progress", 0].made == set(base.stages)


@pytest.mark.parametrize(
    ("setting", "value", "first"),
    [
        ("sft.steps", 7, "sft"),
        ("max_completion_tokens", 40, "sft"),
        ("ppo.kl_coef", 0.5, "rl"),
        ("label.checkpoints", 1, "rl"),  # the baseline keeps them
        ("label.samples_per_prefix", 2, "label"),
        ("prm.steps", 3, "prm"),
        ("value_init", True, "rl_prm"),
        ("evaluate.samples", 7, None),
        ("sandbox.jobs", 3, None),
        ("mesh.data", 1, None),
    ],
)
def test_a_setting_changes_the_stages_from_the_first_that_reads_it(setting, value, first):
    one = study(arms=(Arm("ppo", measure="rl"), Arm("a"), Arm("b", {setting: value})))
    runs = runs_of(one)
    a, b = runs["a", 0], runs["b", 0]
    changed = [stage for stage in a.stages if a.keys[stage] != b.keys[stage]]
    assert changed == ([] if first is None else list(a.stages[a.stages.index(first) :]))


def test_redrawing_rl_only_takes_everything_else_from_the_first_seed():
    runs = runs_of(study(redraw="rl", seeds=(3, 4)))
    for arm, measured in (("dense", "rl_prm"), ("ppo", "rl"), ("perfect", "rl_prm")):
        first, second = runs[arm, 3], runs[arm, 4]
        assert second.config.seed == 4 and second.made == {measured}
        for stage in first.stages:
            assert (first.keys[stage] == second.keys[stage]) == (stage != measured)
    # The baseline that wrote the responses is that of the first seed.
    assert runs["dense", 4].keys["rl"] == runs["ppo", 3].keys["rl"] != runs["ppo", 4].keys["rl"]


def test_an_arm_may_ask_for_some_of_the_seeds():
    arms = (*ARMS[:3], Arm("min", {"dense.form": "min"}, seeds=(1, 5)))
    runs = runs_of(study(arms=arms, seeds=(0, 1, 2)))
    assert [seed for arm, seed in runs if arm == "min"] == [1]
    assert len(runs) == 3 * 3 + 1


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "studies").glob("*.py")))
def test_every_study_of_the_repository_can_be_run(path):
    found = load_study(path)
    assert found.name == path.stem and len(found.seeds) >= 3
    runs = study_runs(found)
    seeds = Counter(run.arm.name for run in runs)
    assert min(seeds.values()) >= 3  # no arm's result is from one seed
    assert all(arm.about for arm in found.arms)
    study_runs(dataclasses.replace(found, redraw="rl"))
    problems = found.config.problems
    if {"chains": problems.chains, "branches": problems.branches}[problems.name].final:
        study_runs(found, final=True)


def test_the_digest_is_that_of_results_json():
    for run in study_runs(study()):
        same = Run(**dict.fromkeys(Run.__dataclass_fields__) | {"config": run.config})  # type: ignore
        assert run.digest == same.digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": (*ARMS, Arm("ppo"))}, "two have one name"),
        ({"arms": (*ARMS, Arm("A b"))}, "names folders"),
        ({"arms": (*ARMS, Arm("x", {"dense.from": "min"}))}, "arm 'x'.*dense.from.*'form'"),
        ({"arms": (*ARMS, Arm("x", {"sed": 1}))}, "arm 'x'.*sed.*'seed'"),
        ({"arms": (*ARMS, Arm("x", {"dense.lam_fail": 2.0}))}, "arm 'x'.*dense.lam_fail"),
        ({"arms": (*ARMS, Arm("x", shares="dens"))}, "did you mean 'dense'"),
        ({"arms": (Arm("x", shares="dense"), *ARMS)}, "listed before"),
        (
            {"arms": (*ARMS, Arm("x", measure="prm")), "baseline": "x"},
            "baseline = 'x' has no pass@1, since it measures 'prm'.*another arm",
        ),
        ({"baseline": "pop"}, "baseline = 'pop'.*'ppo'"),
        ({"ordering": ("sft", "best")}, "ordering = 'best'"),
        ({"arms": (*ARMS, Arm("x", {"dense.enabled": "false"}))}, "'x'.*enabled = 'false'.*bool"),
        ({"arms": (*ARMS, Arm("x", {"ppo.steps": 2.5}))}, "'x'.*ppo.steps = 2.5.*type int"),
        ({"arms": (*ARMS, Arm("x", {"label": {"wave": 2}}))}, "'x'.*label = .*LabelConfig"),
        ({"also_less": ("pop",)}, "also_less = 'pop'.*'ppo'"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": 2}, r"seeds = 2 is not allowed.*tuple\[int"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"redraw": "none"}, "redraw"),
    ],
)
def test_bad_studies_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        study(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Arm("x", {"seed": 9}), "arm 'x': seed is no setting of an arm"),
        (lambda: Arm("x", through="rl_prm"), "through = 'rl_prm' .*one of sft, rl, label, prm"),  # type: ignore
        (lambda: Arm("x", measure="report"), "'report' .*must be one of sft, rl, label, prm, rl_p"),  # type: ignore
        (lambda: Arm("x", seeds=1), r"arm 'x': seeds = 1 is not allowed.*tuple\[int"),  # type: ignore
    ],
)
def test_bad_arms_are_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Study(name='s', arms=(Arm('a', measur='rl'),))", r"line 4: .*did you mean 'measure'"),
        ("Study(nam='s')", r"line 4: .*did you mean 'name'"),
        ("Study(zzz='s')", r"line 4: .*there are name, config"),
        ("Study(name=1 / 0)", r"line 4: ZeroDivisionError"),
        ("Study(", r"line 4: SyntaxError"),
        ("7", "returned int, not a Study"),
        (
            "Study(name='s', config=Config(), arms=(Arm('a', seeds=(1, 7)),), seeds=(0, 1), "
            "baseline='a')",
            r"arm 'a': seeds = \(1, 7\) is not allowed: 7 is none",
        ),
    ],
)
def test_a_study_file_that_fails_is_refused_in_a_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    head = "from prm_jax.config import Config\nfrom prm_jax.study import Arm, Study\n"
    path.write_text(f"{head}def get_study():\n    return {text}\n")
    with pytest.raises(ConfigError, match=f"mine.py.*{message}") as error:
        load_study(path)
    assert "\n" not in str(error.value)


def test_a_relative_file_is_named_with_its_line_and_so_is_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine.py").write_text("x = 1\n\nmissing\n")
    with pytest.raises(ConfigError, match="^mine.py, line 3: NameError"):
        load_study(Path("mine.py"))
    Path("broken_helper.py").write_text("y = {}\ny['x']\n")
    Path("mine.py").write_text("\nimport broken_helper\n")
    with pytest.raises(ConfigError, match=r"^mine.py, line 2 \(from .*helper.py, line 2\): KeyE"):
        load_study(Path("mine.py"))
    Path("broken_helper.py").write_text("y = 0\n\n\ndef f(:\n")
    with pytest.raises(ConfigError, match=r"^mine.py, line 2 \(from .*helper.py, line 4\): Synt"):
        load_study(Path("mine.py"))


def test_arms_of_some_seeds_have_no_others():
    found = load_study(Path(__file__).parents[1] / "studies/default.py")
    for seeds in ((3, 4), (5, 6)):
        some = dataclasses.replace(found, seeds=seeds)
        runs = study_runs(some)
        assert {run.seed for run in runs} == set(seeds)
        there = {run.arm.name for run in runs}
        assert {"sft", "ppo", "dense"} <= there and not {"grpo", "critic_warmup"} & there


def test_an_arm_has_no_seed_that_the_one_it_shares_with_has_not():
    few = tuple(dataclasses.replace(a, seeds=(0,)) if a.name == "dense" else a for a in ARMS)
    runs = runs_of(study(arms=few))
    assert ("warm", 0) in runs and ("warm", 1) not in runs and ("perfect", 1) in runs


def test_settings_that_hold_only_together_may_come_in_any_order():
    pair = {"ppo.advantage": "group", "ppo.samples_per_prompt": 2, "ppo.rollouts": 8}
    for names in (list(pair), list(pair)[::-1]):
        config = with_settings(Config(value_init=False), {name: pair[name] for name in names})
        assert (config.ppo.advantage, config.ppo.samples_per_prompt) == ("group", 2)


def test_stages_that_no_arm_makes_are_refused():
    arms = (Arm("ppo", measure="rl"), Arm("warm", {"ppo.kl_coef": 0.1}, shares="ppo"))
    with pytest.raises(ConfigError, match="'warm' takes 'label' from another"):
        study_runs(study(arms=arms))
