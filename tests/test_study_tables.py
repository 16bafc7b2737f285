"""The tables of a study: intervals against numbers by hand, pairs, and the page."""

import dataclasses
import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_up_study import ARMS, study

from prm_jax.config import ConfigError
from prm_jax.study import Arm
from prm_jax.study.details import details
from prm_jax.study.intervals import estimate
from prm_jax.study.markdown import markdown
from prm_jax.study.records import described
from prm_jax.study.runs import study_runs
from prm_jax.study.tables import SetTable, bad_lines, set_tables

SEEDS = (0, 1, 2)
STUDY = study(
    arms=ARMS[:3], seeds=SEEDS, ordering=("sft", "ppo", "dense"), about="What <b>helps</b>?"
)
RUNS = study_runs(STUDY)


def line(run, passes, **fields):
    return described(STUDY, run) | {
        "status": "finished", "error": None,
        "passes": passes, "samples": 10, "pass_at_1": sum(passes) / 10 / len(passes),
        "by_horizon": {"3": 0.5, "10": passes[0] / 10}, "cpu_s": 100.0 + run.seed,
        "programs": {"generated": 1000, "executed": 900}, "long": 0.25,
    } | fields  # fmt: skip


def lines(passes: dict[str, list[list[int]]]) -> list[dict]:
    """Lines of all arms: passes[arm][seed] of 10 samples of each problem."""
    by = {(run.arm.name, run.seed): run for run in RUNS}
    return [
        line(by[arm, seed], row) for arm, rows in passes.items() for seed, row in enumerate(rows)
    ]


PASSES = {
    "sft": [[1, 1], [3, 1], [1, 5]],  # means .1, .2, .3
    "ppo": [[4, 4], [6, 4], [6, 6]],  # .4, .5, .6
    "dense": [[5, 4], [4, 6], [9, 4]],  # .45, .5, .65
}


def set_table(a_study, runs, records) -> SetTable | None:
    """The table of the only set."""
    tables = set_tables(a_study, runs, records)
    assert len(tables) <= 1
    return tables[0] if tables else None


# ------------------------------------------------------------------------------------- intervals


def test_an_interval_over_seeds_is_students():
    """Means .1, .2, .3: s = .1, standard error .1 / sqrt(3), t_2(.975) = 4.302653."""
    found = estimate(np.array(PASSES["sft"]) / 10, confidence=0.95)
    assert found.value == pytest.approx(0.2)
    assert found.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert found.low == pytest.approx(0.2 - 4.302653 * 0.1 / math.sqrt(3))
    assert found.high == pytest.approx(0.2 + 4.302653 * 0.1 / math.sqrt(3))
    assert (found.seeds, found.problems) == (3, 2)


def test_a_bootstrap_over_seeds_and_problems_is_its_distribution():
    """Two seeds and one problem: means of two drawn from 0 and 1 are 0, .5, .5, 1."""
    found = estimate(np.array([[0.0], [1.0]]), confidence=0.4, resamples=20_000)
    assert (found.bootstrap_low, found.bootstrap_high) == (0.5, 0.5)
    found = estimate(np.array([[0.0], [1.0]]), confidence=0.6, resamples=20_000)
    assert (found.bootstrap_low, found.bootstrap_high) == (0.0, 1.0)
    # Seeds that agree leave the problems, here two: the same four draws.
    found = estimate(np.array([[0.0, 1.0]] * 5), confidence=0.6, resamples=20_000)
    assert (found.low, found.high) == (0.5, 0.5)
    assert (found.bootstrap_low, found.bootstrap_high) == (0.0, 1.0)


def test_the_bootstrap_draws_the_same_problems_for_all_seeds():
    """Seeds that differ by a constant: the spread of the problems does not average out over them.

    20 problems of 0 or 1, half each: the mean has a standard deviation of .5 / sqrt(20) = .112,
    however many seeds agree on them.
    """
    rates = np.tile(np.arange(20) % 2, (50, 1)).astype(float)
    found = estimate(rates, confidence=0.6827, resamples=20_000)
    assert found.bootstrap_low is not None and found.bootstrap_high is not None
    assert (found.bootstrap_high - found.bootstrap_low) / 2 == pytest.approx(0.112, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (4, 5), elements=st.floats(0, 1)))
def test_intervals_hold_the_mean_and_do_not_ask_for_an_order(rates):
    found = estimate(rates, confidence=0.95, resamples=200)
    again = estimate(rates[::-1], confidence=0.95, resamples=200)
    assert found.low is not None and found.high is not None
    assert found.low <= found.value + 1e-9 and found.value <= found.high + 1e-9
    assert found.value == pytest.approx(rates.mean())
    assert (found.low, found.high) == pytest.approx((again.low, again.high))


def test_one_seed_has_no_interval_and_no_rates_are_refused():
    found = estimate(np.ones((1, 3)), confidence=0.95)
    assert found.value == 1 and found.low is None and found.bootstrap_low is None
    with pytest.raises(ValueError, match="needs a seed"):
        estimate(np.ones((0, 3)), confidence=0.95)


# ---------------------------------------------------------------------------------------- tables


def test_arms_are_compared_seed_by_seed():
    table = set_table(STUDY, RUNS, lines(PASSES))
    assert table is not None
    rows = {arm.name: arm for arm in table.arms}
    # Seed by seed .05, 0, .05: mean 1/30, s = .0288675.
    difference = rows["dense"].differences["ppo"]
    assert difference is not None and difference.standard_error is not None
    assert difference.value == pytest.approx(1 / 30)
    assert difference.standard_error == pytest.approx(0.0288675 / math.sqrt(3), rel=1e-4)
    assert rows["ppo"].differences == {"ppo": None}
    assert rows["ppo"].by_seed == pytest.approx({0: 0.4, 1: 0.5, 2: 0.6})
    assert rows["sft"].cpu_s == 101.0 and rows["sft"].long == 0.25 and rows["sft"].greedy is None
    assert rows["dense"].by_horizon == pytest.approx({"3": 0.5, "10": (0.5 + 0.4 + 0.9) / 3})
    assert table.horizons == ["3", "10"]  # by number, not by text
    first, second = table.ordering
    assert first.holds  # .3 in every seed
    # 1/30 is 2.0 standard errors, to rounding: exactly 2 would not hold.
    assert second.difference == difference and second.holds == (
        difference.value > 2 * difference.standard_error
    )


def test_only_seeds_that_both_have_are_paired():
    some = [r for r in lines(PASSES) if (r["arm"], r["seed"]) != ("ppo", 0)]
    table = set_table(STUDY, RUNS, some)
    assert table is not None
    dense = next(arm for arm in table.arms if arm.name == "dense")
    assert dense.pass_at_1 is not None and dense.pass_at_1.seeds == 3
    difference = dense.differences["ppo"]
    assert difference is not None and difference.seeds == 2
    assert difference.value == pytest.approx(0.025)
    alone = [r for r in lines(PASSES) if r["arm"] == "dense"]
    table = set_table(STUDY, RUNS, alone)
    assert table is not None and table.ordering[1].holds is None
    assert [arm.differences for arm in table.arms] == [{"ppo": None}] * 3


def test_lines_of_other_settings_do_not_count_and_the_last_line_of_a_run_does():
    good = lines(PASSES)
    old = [
        r | {"config": r["config"] | {"value_init": True}, "passes": [0, 0], "pass_at_1": 0.0}
        for r in good
    ]
    failed = [r | {"status": "failed", "error": "NaN"} for r in good[:2]]
    again = good[0] | {"passes": [10, 10], "pass_at_1": 1.0}
    table = set_table(STUDY, RUNS, [*old, *failed, *good, again])
    assert table is not None
    assert table.arms[0].by_seed[0] == 1.0 and table.arms[1].by_seed[0] == pytest.approx(0.4)
    assert len(bad_lines(STUDY, RUNS, [*old, *failed, *good])) == 2
    assert set_table(STUDY, RUNS, [*old, *failed]) is None


def test_a_line_that_is_older_than_a_setting_counts_while_the_setting_is_at_its_default():
    def without(name: str) -> list[dict]:
        records = json.loads(json.dumps(lines(PASSES)))
        for record in records:
            section, _, field = name.rpartition(".")
            del (record["config"][section] if section else record["config"])[field]
        return records

    table = set_table(STUDY, RUNS, without("dense.tau"))
    assert table is not None and all(arm.pass_at_1 is not None for arm in table.arms)
    assert set_table(STUDY, RUNS, without("value_init")) is None  # it is not at its default
    # What an arm shares counts as well.
    records = [r | {"before": ["ppo.kl_coef: 0.1 -> 0.2"]} for r in lines(PASSES)]
    assert set_table(STUDY, RUNS, records) is None


def test_what_is_judged_on_other_problems_is_not_compared_with_them():
    others = (
        Arm("long", {"problems.chains.test": 9}),
        Arm("branches", {"problems.name": "branches"}),
    )
    one = study(arms=(*ARMS[:3], *others), seeds=SEEDS, ordering=("ppo", "branches"))
    records = [line(run, [5, 5]) | described(one, run) for run in study_runs(one)]
    chains, branches = set_tables(one, study_runs(one), records)
    assert [chains.name, branches.name] == ["chains/test", "branches/test"]
    assert [arm.name for arm in chains.arms] == ["sft", "ppo", "dense", "long"]
    assert [arm.differences["ppo"] is None for arm in chains.arms] == [False, True, False, True]
    assert [arm.name for arm in branches.arms] == ["branches"]
    assert (
        branches.arms[0].differences == {"ppo": None}
        and not chains.ordering
        and not branches.ordering
    )


def test_the_page_and_the_markdown_say_the_same_numbers(tmp_path):
    from prm_jax.report.study import write_study

    records = lines(PASSES)
    prm = {"first_error": {"exact": 0.7123, "f1": None}, "auc_within_problem": 0.8}
    prm["by_step_of_rl_prm"] = {
        step: {
            "pass_rate": 0.1, "any_of_n": 0.6, "best_of_n": {"lowest": best, "last": None},
            "auc_passed": None, "mean_score": {"passing": 0.5, "failing": -0.25},
            "by_oracle": {"first_error": {"exact": 0.43}},
        }
        for step, best in (("13", 0.234), ("5", 0.345))
    }  # fmt: skip
    prm["by_completions"] = {"saved": 0.5432, "ece": 0.1789, "correlation": 0.6543}
    records[-1] |= {"critic": {"correlation": 0.87, "rmse": 0.19, "rmse_of_mean": 0.21}}
    records[-1] |= {"prm": prm, "labels": {"oracle_first_error_exact": 0.9}}
    records[-1] |= {"plans": {"plan_share": 0.321}}
    records[-1] |= {
        "exploration": {"problems": 9, "asked": 8, "solved": 5, "distinct_solutions": 7}
    }
    bad = [records[0] | {"status": "failed", "error": "<script>alert(1)</script>"}]
    table = set_table(STUDY, RUNS, records)
    assert table is not None
    text = markdown(STUDY, [table], [details(table.arms, confidence=0.95)], bad)
    page = write_study(
        tmp_path / "s.html",
        study=STUDY,
        tables=[table],
        details=[details(table.arms, confidence=0.95)],
        bad=bad,
    ).read_text()
    row = next(r for r in text.split("\n") if r.startswith("| dense | 3 × 2"))
    assert re.sub(" +", " ", row).startswith("| dense | 3 × 2 | 53.3 | 27.5 to 79.2 |")
    assert "| +3.3 |" in row
    numbers = "53.3 27.5 79.2 +3.3 +10.5 0.71 0.80 0.90 62.5 32.1 0.87 0.19 23.4 34.5 0.43 -0.25"
    numbers += " 0.54 0.18 0.65"
    for shown in numbers.split():
        assert shown in page and shown in text, shown
    assert text.index("| dense, 5 |") < text.index("| dense, 13 |")
    assert "n is seeds × problems" in text and "Student's t" in page and "bootstrap" in page
    assert "`sft` < `ppo`: yes, +30.0 points" in text
    assert "<script>" not in page and "<b>helps" not in page
    assert "src=" not in page and "://" not in re.sub(r'http://www\.w3\.org/[^"]*', "", page)
    drawn = ElementTree.parse(tmp_path / "s-chains-test.svg").getroot()  # a file of its own
    assert (
        drawn.tag == "{http://www.w3.org/2000/svg}svg"
        and "dense 53.3" in drawn.attrib["aria-label"]
    )
    assert "var(" not in (tmp_path / "s-chains-test.svg").read_text()
    assert not (tmp_path / "s-chains-test-price.svg").exists()
    empty = write_study(tmp_path / "e.html", study=STUDY, tables=[], details=[], bad=[]).read_text()
    assert "No run is finished yet" in empty


def test_details_are_means_with_half_of_their_interval_by_seeds():
    """Three seeds by hand: mean .6, s = .1, and t = 4.303 of two degrees of freedom."""
    records = lines(PASSES)
    for record, exact in zip(
        [r for r in records if r["arm"] == "dense"], (0.5, 0.6, 0.7), strict=True
    ):
        record["labels"] = {"oracle_first_error_exact": exact}
        record["label_cost"] = {"labels": 50, "completions": 100, "seconds": 0.8}
        record["prm"] = {
            "first_error": {"exact": exact},
            "by_oracle": {"first_error": {"exact": 0.4}},
            "by_checkpoint": {"4": {"first_error": {"exact": exact - 0.1}}},
            "style": {
                "as_written": {"accused": 0.5, "mean_change": 0.0},
                "commented": {"accused": 1.0, "mean_change": -exact},
            },
            "reranking": {"pass_rate": 0.1, "best_of_n": {"lowest": 0.3, "last": 0.2}},
        }
    records[-1]["labels"]["dense_search"] = {"non_monotone": 0.04, "binary_agrees": 0.97}
    table = set_table(STUDY, RUNS, records)
    assert table is not None
    found = {
        d.title: dict(zip(d.columns, d.rows[0].shown, strict=True))
        for d in details(table.arms, confidence=0.95)
    }
    half = 4.303 * 0.1 / math.sqrt(3)
    assert found["labels"]["first error as the oracle"] == f"0.60 ± {half:.2f}"
    assert found["labels"]["completions per label"] == "2.00 ± 0.00"
    assert found["labels"]["milliseconds per label"] == "16.0 ± 0.0"
    assert found["labels"]["not monotone"] == "0.04"  # known of one seed
    assert found["PRM by labels"]["exact"] == f"0.60 ± {half:.2f}"
    assert found["PRM"]["exact"] == "0.40 ± 0.00"
    assert found["PRM on right programs"] == {
        "seeds": "3", "accused as written, %": "50.0 ± 0.0", "comments, %": "100.0 ± 0.0",
        "comments: change": f"-0.60 ± {half:.2f}",
    }  # fmt: skip
    assert found["PRM on the baseline, by step"] == {"seeds": "3", "exact": f"0.50 ± {half:.2f}"}
    assert found["PRM"]["best of 8 by lowest score, %"] == "30.0 ± 0.0"
    assert "any of 8, %" not in found["PRM"]  # nobody has it
    assert "labels, less `dense`" not in found  # there is no other arm with labels
    shared = dataclasses.replace(table.arms[-1], name="shares")
    again = details([*table.arms, shared], confidence=0.95)
    assert [row.name for d in again if d.title in ("labels", "PRM") for row in d.rows] == [
        "dense"
    ] * 2
    for record, more in zip(
        [r for r in records if r["arm"] == "ppo"], (0.1, 0.2, 0.3), strict=True
    ):
        seed = record["seed"]
        other = next(r for r in records if r["arm"] == "dense" and r["seed"] == seed)
        exact = other["labels"]["oracle_first_error_exact"] - more
        record["labels"] = {"oracle_first_error_exact": exact}
    table = set_table(STUDY, RUNS, records)
    assert table is not None
    paired = next(d for d in details(table.arms, confidence=0.95) if "less" in d.title)
    # ppo comes first, so dense is held against it: .2 more, s = .1
    assert (paired.title, paired.rows[0].name) == ("labels, less `ppo`", "dense")
    assert paired.rows[0].shown[1] == f"+0.20 ± {half:.2f}"
    assert "milliseconds per label" not in paired.columns  # the first arm executes for the others


def test_arms_are_compared_with_more_than_the_baseline():
    also = dataclasses.replace(STUDY, also_less=("dense",))
    (table,) = set_tables(also, RUNS, lines(PASSES))
    rows = {arm.name: arm.differences for arm in table.arms}
    less, more = rows["ppo"]["dense"], rows["dense"]["ppo"]
    assert less is not None and more is not None and rows["dense"]["dense"] is None
    assert less.value == pytest.approx(-more.value) and less.low == pytest.approx(-more.high)
    text = markdown(also, [table], [[]], [])
    assert "| less ppo | by seeds | less dense | by seeds |" in text
    assert "Differences to `ppo` and to `dense` are paired" in text


def test_prms_with_other_labels_are_compared_by_the_oracle_alone():
    records = lines(PASSES)
    for record in records:
        if record["arm"] in ("ppo", "dense"):
            better = 0.1 * (record["arm"] == "dense")
            record["prm"] = {
                "first_error": {"exact": 0.9 - better},
                "by_oracle": {"first_error": {"exact": 0.5 + better}},
                "reranking": {"pass_rate": 0.2, "best_of_n": {"lowest": 0.4 + better}},
            }
    table = set_table(STUDY, RUNS, records)
    assert table is not None
    paired = [d for d in details(table.arms, confidence=0.95) if "less" in d.title]
    assert [d.title for d in paired] == ["PRM, less `ppo`"]
    assert dict(zip(paired[0].columns, paired[0].rows[0].shown, strict=True)) == {
        "seeds": "3", "exact": "+0.10 ± 0.00", "best of 8 by lowest score, %": "+10.0 ± 0.0",
    }  # fmt: skip


def test_arms_are_drawn_against_the_programs_that_they_took(tmp_path):
    from prm_jax.report.study import write_study

    arms = (*ARMS[:3], Arm("longer", {"ppo.steps": 9}, measure="rl"), Arm("never", measure="rl"))
    priced = study(arms=arms, seeds=SEEDS, priced=("ppo", "dense", "sft", "longer"))
    runs = study_runs(priced)
    programs = {"sft": 0, "ppo": 6_400, "dense": 250_000, "longer": 12_800}
    passes = PASSES | {"longer": PASSES["dense"]}
    records = [
        line(run, passes[run.arm.name][run.seed])
        | described(priced, run)
        | {"programs": {"generated": programs[run.arm.name], "executed": 9}}
        for run in runs
        if run.arm.name != "never"
    ]
    (table,) = set_tables(priced, runs, records)
    text = markdown(priced, [table], [[]], [])
    assert "No run is finished of `never`." in text and "| never |" not in text
    shown = {"tables": [table], "details": [[]], "bad": []}
    page = write_study(tmp_path / "s.html", study=priced, **shown).read_text()
    drawn = ElementTree.parse(tmp_path / "s-chains-test-price.svg").getroot()
    said = drawn.attrib["aria-label"]
    assert "ppo 50.0 % for 6,400 programs; longer 53.3 % for 12,800 programs; dense 53.3 %" in said
    assert "sft" not in said and said.split(": ")[1].strip(".") in page
    with pytest.raises(ConfigError, match="priced = 'pp' is no arm"):
        dataclasses.replace(STUDY, priced=("pp",))
