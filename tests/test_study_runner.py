"""A study as it runs, with a stand-in for the trainer: what is shared, resumed, written down."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from made_up_study import ARMS, BASE, FAKE, go, runs_of, study

from prm_jax.config import ConfigError
from prm_jax.config_file import read_config
from prm_jax.study import Arm
from prm_jax.study.__main__ import main
from prm_jax.study.markdown import markdown
from prm_jax.study.records import finished, programs, read_records
from prm_jax.study.runner import Runner, core_sets
from prm_jax.study.runs import study_runs
from prm_jax.study.tables import set_tables


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def made(log: Path) -> Counter:
    """How often each (arm-seed, stage) was made."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return Counter(("-".join(run.split("-")[:2]), stage) for run, stage in lines)


def test_every_run_leaves_one_line_and_every_stage_is_made_once(tmp_path, log):
    good, records = go(study(), tmp_path)
    assert good and Counter(made(log).values()) == Counter({1: len(made(log))})
    stages = Counter(stage for _, stage in made(log))
    assert stages == {"sft": 2, "rl": 2, "label": 2, "prm": 2, "rl_prm": 8, "evaluate": 12}
    assert sorted((r["arm"], r["seed"]) for r in records) == sorted(runs_of(study()))
    by = {(r["arm"], r["seed"]): r for r in records}
    line = by["progress", 1]
    assert line["status"] == "finished" and line["exit_code"] == 0 and line["attempts"] == 1
    assert (line["n"], line["samples"], line["set"]) == (4, 2, "chains/test")
    assert line["passes"] == [2, 2, 2, 1] and line["pass_at_1"] == 7 / 8
    assert line["by_horizon"] == {"3": 7 / 8, "10": 7 / 8}
    assert line["settings"] == ["dense.form: 'value' -> 'progress'"]
    assert line["made"] == ["rl_prm"]
    assert set(line["shared"]) == {"sft", "label", "prm"}
    assert line["config_digest"] == runs_of(study())["progress", 1].digest
    assert 0 < line["cpu_s"] < 60 and line["cpu_s"] == line["cpu_s_all_attempts"]
    # 4 steps of 16 rollouts each for the baseline and the arm; labels: 10 + 70, 30 of these run.
    assert line["programs"] == {
        "policy": 64, "baseline": 64, "responses": 10, "completions": 70, "generated": 208,
        "executed": 64 + 64 + 10 + 30,
    }  # fmt: skip
    assert by["perfect", 0]["programs"]["generated"] == 64
    assert by["sft", 0]["programs"]["generated"] == 0
    assert by["ppo", 0]["programs"]["generated"] == 64
    assert "labels" in line and "labels" not in by["perfect", 0]


def test_shared_stages_are_the_same_files_and_evaluations_are_not_repeated(tmp_path, log):
    one = study(seeds=(1,))
    go(one, tmp_path)
    runs = runs_of(one)
    workdir = {arm: tmp_path / "runs" / runs[arm, 1].name for arm in ("ppo", "dense", "warm")}
    params = [w / "sft/policy/params" for w in workdir.values()]
    assert len({p.stat().st_ino for p in params}) == 1
    assert params[0].read_text() == "sft of seed 1"
    assert not (workdir["warm"] / "rl").exists()  # it would be evaluated again
    config = read_config(workdir["warm"] / "run.json")
    assert config.ppo.critic_warmup_steps == 2 and config.seed == 1
    evaluated = json.loads((workdir["warm"] / "results.json").read_text())["arms"]["sft"]
    assert evaluated["evaluated_by"] != workdir["warm"].name


def test_a_finished_study_does_nothing_and_a_changed_arm_is_run_anew(tmp_path, log):
    _, before = go(study(), tmp_path)
    n = sum(made(log).values())
    good, records = go(study(), tmp_path)
    assert good and records == before and sum(made(log).values()) == n
    arms = tuple(
        a if a.name != "progress" else Arm("progress", {"dense.form": "min"}) for a in ARMS
    )
    _, records = go(study(arms=arms), tmp_path)
    assert [r["settings"] for r in records[len(before) :]] == [["dense.form: 'value' -> 'min'"]] * 2


def test_a_failed_run_is_written_down_with_its_last_words_and_the_rest_go_on(
    tmp_path, log, monkeypatch
):
    monkeypatch.setenv("FAKE_FAIL", "prm:1")
    good, records = go(study(), tmp_path)
    assert not good
    status = {(r["arm"], r["seed"]): r["status"] for r in records}
    lost = {("dense", 1), ("progress", 1), ("warm", 1)}
    assert {run for run, s in status.items() if s == "failed"} == lost
    assert {run for run, s in status.items() if s == "finished"} == set(status) - lost
    assert (
        made(log)[("dense-s1", "prm")] == 1
        and sum(n for (_, stage), n in made(log).items() if stage == "prm") == 2
    )  # one for each seed: what cannot be made is not tried for every arm
    errors = {r["arm"]: r["error"] for r in records if r["status"] == "failed"}
    assert "exit code 1: NaN in prm:1" in errors["dense"]
    assert "stage 'prm' could not be made by dense-s1" in errors["warm"]
    # Mended, the same study tries them again, and nothing else.
    monkeypatch.setenv("FAKE_FAIL", "")
    good, again = go(study(), tmp_path)
    assert good and {(r["arm"], r["seed"]) for r in again[len(records) :]} == lost
    assert again[: len(records)] == records
    dense = next(r for r in again[len(records) :] if r["arm"] == "dense")
    assert dense["attempts"] == 2 and made(log)[("dense-s1", "label")] == 1


def test_files_that_are_no_results_are_a_failure(tmp_path, log):
    one = study(arms=(Arm("ppo", measure="rl"),), seeds=(0,))
    silent = (sys.executable, "-c", "pass")
    runner = Runner(
        one, study_runs(one), records=tmp_path / "runs.jsonl", workdirs=tmp_path / "runs",
        jobs=1, command=silent, poll_s=0.02,
    )  # fmt: skip
    assert not runner.run()
    (line,) = read_records(tmp_path / "runs.jsonl")
    assert line["status"] == "failed" and "not those of a finished run" in line["error"]


def study_file(tmp_path: Path, changes: str = "") -> Path:
    path = tmp_path / "small.py"
    path.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from made_up_study import *\n"
        "def get_study():\n"
        f"    return study(name='small', seeds=(0, 1), {changes})\n"
    )
    return path


def options(tmp_path: Path, *more: str) -> list[str]:
    """The command line of the study of `study_file`."""
    return [
        "--study", str(tmp_path / "small.py"), "--out", str(tmp_path / "results"),
        "--workdirs", str(tmp_path / "runs"), *more,
    ]  # fmt: skip


def start(tmp_path: Path, **environment: str) -> subprocess.Popen:
    code = f"import sys; from prm_jax.study.__main__ import main; sys.exit(main(command={FAKE!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "--study", str(study_file(tmp_path)), "--jobs", "2",
         "--out", str(tmp_path / "results"), "--workdirs", str(tmp_path / "runs")],
        env=os.environ | environment,
    )  # fmt: skip


def wait_for(condition, seconds: float = 60) -> None:
    by = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < by, "it did not happen"
        time.sleep(0.05)


def test_an_interrupted_study_ends_its_runs_and_goes_on(tmp_path, log):
    process = start(tmp_path, FAKE_HANG="rl:0 rl:1")
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/*/hangs"))) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    lines = read_records(tmp_path / "results/runs.jsonl")
    cut = [r for r in lines if r["status"] == "abandoned"]
    assert {r["arm"] for r in cut} == {"ppo"} and {r["seed"] for r in cut} == {0, 1}
    assert all(r["cpu_s"] > 0 and r["exit_code"] != 0 for r in cut)
    assert start(tmp_path).wait(120) == 0
    after = read_records(tmp_path / "results/runs.jsonl")
    assert after[: len(lines)] == lines and sum(r["status"] == "finished" for r in after) == 12
    assert (tmp_path / "results/small.html").exists()


def test_a_killed_study_leaves_lines_when_it_goes_on(tmp_path, log):
    process = start(tmp_path, FAKE_HANG="rl:0")
    wait_for(lambda: list((tmp_path / "runs").glob("*/*/hangs")))
    process.kill()
    process.wait()
    workdir = next((tmp_path / "runs").glob("*/*/hangs")).parent
    left = [
        int(p.name)
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and workdir.name.encode() in _command(p)
    ]
    for pid in left:  # the stand-in locks no workdir, so it must not go on beside the second study
        os.kill(pid, signal.SIGKILL)
    assert start(tmp_path).wait(120) == 0
    lines = read_records(tmp_path / "results/runs.jsonl")
    assert sum(r["status"] == "finished" for r in lines) == 12
    (cut,) = [r for r in lines if r["run"] == workdir.name and r["status"] != "finished"]
    assert cut["status"] == "abandoned" and cut["cpu_s"] is None and "killed" in cut["error"]
    whole = next(r for r in lines if r["run"] == workdir.name and r["status"] == "finished")
    assert whole["attempts"] == 2 and whole["cpu_s_all_attempts"] is None


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_greedy_evaluation_is_a_second_process_of_the_run(tmp_path, log):
    one = study(arms=ARMS[:3], seeds=(2,), greedy=True)
    good, records = go(one, tmp_path)
    assert good and len(records) == 3
    dense = next(r for r in records if r["arm"] == "dense")
    # 5 of 8 samples pass; of 4 greedy ones 5 // 2 do.
    assert dense["pass_at_1"] == 5 / 8 and dense["pass_at_1_greedy"] == 2 / 4
    assert dense["samples"] == 2


def test_an_arm_may_be_measured_by_its_labels_or_its_prm_alone(tmp_path, log):
    """No policy is trained for it, and its line has no pass@1; it shares stages as others do."""
    more = (
        Arm("labels", measure="label"),
        Arm("k2", {"label.samples_per_prefix": 2, "label.wave": 2}, measure="label"),
        Arm("prms", {"prm.steps": 3}, measure="prm"),
    )
    one = study(arms=(*ARMS[1:3], *more), seeds=(0,), greedy=True)
    good, records = go(one, tmp_path)
    assert good
    stages = Counter(line.split()[1] for line in log.read_text().splitlines())
    # Two kinds of labels and two PRMs; policies are judged twice, once greedily.
    wanted = {"sft": 1, "rl": 1, "label": 2, "prm": 2, "rl_prm": 1, "evaluate": 7}
    assert stages == wanted and made(log)["dense-s0", "rl_prm"] == 1
    by = {r["arm"]: r for r in records}
    for name in ("labels", "k2", "prms"):
        assert "pass_at_1" not in by[name] and "passes" not in by[name]
        assert by[name]["labels"] == {"oracle_first_error_exact": 0.75}
        programs = by[name]["programs"]
        assert (programs["policy"], programs["completions"]) == (0, 70)
        assert programs["generated"] == by["ppo"]["programs"]["policy"] + 10 + 70
    (table,) = set_tables(one, study_runs(one), records)
    row = next(arm for arm in table.arms if arm.name == "prms")
    assert row.pass_at_1 is None and row.finished == 1 and row.labels["exact"] == {0: 0.75}
    assert "No run is finished" not in markdown(one, [table], [[]], [])
    assert {run.arm.name for run in study_runs(one, final=True)} == {"ppo", "dense"}


def test_what_is_said_of_a_prm_that_learned_from_nothing_is_kept(tmp_path, log):
    online = {"dense.source": "labels", "dense.prm_updates": 1, "dense.completions": 8}
    one = study(arms=(*ARMS[1:3], Arm("at_once", online)), seeds=(0,))
    good, records = go(one, tmp_path)
    assert good
    by = {r["arm"]: r for r in records}
    assert "label_cost" not in by["at_once"] and by["at_once"]["prm"] == {"by_step_of_rl_prm": {}}
    assert "prm" not in by["ppo"]


def test_final_runs_make_what_they_take_from_an_arm_without_a_policy(tmp_path, log):
    """Though its workdir is gone, and though it has no pass@1 on the final problems itself."""
    taken = Arm("warm", {"ppo.critic_warmup_steps": 2}, shares="prms")
    arms = (*ARMS[1:3], Arm("prms", {"prm.steps": 3}, measure="prm"), taken)
    runs = study_runs(study(arms=arms, seeds=(0,)), final=True)
    assert [run.arm.name for run in runs] == ["ppo", "dense", "prms", "warm"]
    good, records = go(study(arms=arms, seeds=(0,)), tmp_path, final=True)
    assert good and {r["set"] for r in records} == {"chains/final"}
    assert made(log)["prms-s0", "prm"] == 1 and not made(log)["warm-s0", "prm"]


def test_the_baseline_has_the_price_of_the_run_that_made_it(tmp_path):
    """Three times the steps of another arm's baseline, whose folder was not linked."""
    longer = Arm("longer", {"ppo.steps": 3 * BASE.ppo.steps}, shares="dense")
    for run in study_runs(study(arms=(*ARMS[1:3], longer), seeds=(0,))):
        asked = programs(run, tmp_path)  # an empty workdir
        assert asked["baseline"] == (run.arm.name != "ppo") * BASE.ppo.steps * BASE.ppo.rollouts


def test_evaluations_are_gathered_from_all_that_have_the_policy(tmp_path, log):
    """The baseline has programs of the SFT policy, and only runs with a PRM have looked closer."""
    other = Arm("other", {"prm.steps": 3}, measure="prm")
    warmer = Arm("warmer", {"ppo.temperature": 0.7}, shares="dense")
    one = study(arms=(*ARMS[1:3], other, warmer), seeds=(0,))
    go(study(arms=ARMS[1:3], seeds=(0,)), tmp_path)  # all of it before the others begin
    go(one, tmp_path)
    runs = runs_of(one)
    journal = {
        arm: {
            line["key"]: line["value"]
            for line in map(json.loads, (path / "evaluate/journal.jsonl").read_text().splitlines())
        }
        for arm in ("ppo", "dense", "other", "warmer")
        for path in [tmp_path / "runs" / runs[arm, 0].name]
    }
    assert journal["other"]["sft/0"] == journal["ppo"]["sft/0"] == runs["ppo", 0].name
    assert journal["other"]["sft/respond/0"] == runs["dense", 0].name
    # Looked at as hot as rollouts are: another temperature samples anew.
    assert journal["warmer"]["sft/respond/0"] == runs["warmer", 0].name


def test_a_line_is_of_the_stage_that_it_measures(tmp_path, log):
    alone = study(arms=(*ARMS[1:3], Arm("x", {"prm.steps": 3}, measure="prm")), seeds=(0,))
    _, records = go(alone, tmp_path)
    paid = study(arms=(*ARMS[1:3], Arm("x", {"prm.steps": 3})), seeds=(0,))
    for asked, has in ((alone, True), (paid, False)):
        names = {run.arm.name: run.name for run in study_runs(asked)}
        assert (names["x"] in finished(asked, study_runs(asked), records)) == has
    old = [{k: v for k, v in line.items() if k != "measure"} for line in records]  # all of policies
    assert len(finished(alone, study_runs(alone), old)) == 2


def test_arms_that_are_not_asked_for_lend_their_stages(tmp_path, log):
    study_file(tmp_path)
    arguments = options(tmp_path, "--seeds", "0", "--arms")
    assert main([*arguments, "dense"], FAKE) == 0
    labels = made(log)
    assert labels[("dense-s0", "label")] == 1
    assert main([*arguments, "progress"], FAKE) == 0
    new = {what for what in made(log) - labels if what[1] != "evaluate"}
    assert new == {("progress-s0", "rl_prm")}


def test_arms_of_other_seeds_hinder_nobody(tmp_path, log):
    study_file(tmp_path, "arms=of_seed_0()")
    arguments = options(tmp_path, "--seeds", "1", "--arms", "ppo,perfect")
    assert main(arguments, FAKE) == 0
    assert {run for run, _ in made(log)} == {"ppo-s1", "perfect-s1"}


def test_the_final_problems_are_looked_at_once(tmp_path, log, capsys):
    study_file(tmp_path, "arms=few()")
    every = options(tmp_path)
    arguments = [*every, "--arms", "sft,ppo"]
    assert main(arguments, FAKE) == 0
    assert main([*arguments, "--final"], FAKE) == 2  # perfect is not finished
    assert "finish the study on the development problems first" in capsys.readouterr().err
    assert main(every, FAKE) == 0
    trained = made(log)[("ppo-s0", "rl")]
    assert main([*arguments, "--final"], FAKE) == 0
    assert made(log)[("ppo-s0", "rl")] == trained  # the same policies
    lines = read_records(tmp_path / "results/runs.jsonl")
    looked = [r for r in lines if r["status"] == "looked"]
    of = [[(one["arm"], one["seed"]) for one in r["looked"]] for r in looked]
    assert of == [[("sft", 0), ("ppo", 0), ("sft", 1), ("ppo", 1)]]
    lines = [r for r in lines if r["status"] != "looked"]
    final = [r for r in lines if r["set"] == "chains/final"]
    assert len(final) == 4 and len(lines) == 10
    by = {(r["arm"], r["seed"], r["set"]): r["pass_at_1"] for r in lines}
    assert by["ppo", 0, "chains/final"] == by["ppo", 0, "chains/test"] - 1 / 8
    page = (tmp_path / "results/small.md").read_text()
    assert "## chains/test" in page and "## chains/final" in page
    assert page.index("| perfect |") < page.index("## chains/final")
    # The same look, or a part of it, may go on; an arm that is chosen now may not.
    assert main([*every, "--arms", "ppo", "--seeds", "1", "--final"], FAKE) == 0
    for more in ([], ["--seeds", "7"]):
        assert main([*arguments, *more], FAKE) == 0  # its own runs on the development problems
    assert main([*every, "--final"], FAKE) == 2
    assert "'perfect' with seed 0 was not among those judged" in capsys.readouterr().err
    assert main([*arguments, "--seeds", "7", "--final"], FAKE) == 2
    assert "'sft' with seed 7 was not among" in capsys.readouterr().err
    # With other settings there is no second look, but there is one at other problems.
    for config, again in (("other()", 2), ("other_problems()", 0)):
        study_file(tmp_path, f"arms=few(), config={config}")
        assert main(every, FAKE) == 0
        assert main([*arguments, "--final"], FAKE) == again
        assert ("or had other settings" in capsys.readouterr().err) == (again == 2)


def test_a_look_that_was_cut_short_goes_on_as_it_began(tmp_path, log, capsys, monkeypatch):
    """No line of a run is there yet: what was to be judged is known all the same."""
    study_file(tmp_path, "arms=few()")
    arguments = options(tmp_path)
    assert main(arguments, FAKE) == 0

    def killed(runner):
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(Runner, "run", killed)
        assert main([*arguments, "--final"], FAKE) == 130
    study_file(tmp_path, "arms=few(**{'ppo.kl_coef': 0.3})")
    assert main([*arguments, "--final"], FAKE) == 2  # not finished with these settings
    assert main(arguments, FAKE) == 0
    assert main([*arguments, "--final"], FAKE) == 2
    assert "'perfect' with seed 0 was not among" in capsys.readouterr().err
    study_file(tmp_path, "arms=few()")
    assert main([*arguments, "--final"], FAKE) == 0
    lines = read_records(tmp_path / "results/runs.jsonl")
    assert sum(r["status"] == "finished" and r["set"] == "chains/final" for r in lines) == 6


def test_seeds_that_share_a_first_one_are_on_the_page(tmp_path, log):
    study_file(tmp_path)
    arguments = options(tmp_path, "--arms", "ppo", "--redraw", "rl")
    assert main([*arguments, "--seeds", "1"], FAKE) == 0
    assert {run for run, _ in made(log)} == {"ppo-s0", "ppo-s1"}
    page = (tmp_path / "results/small-redraw-rl.md").read_text()
    assert "| ppo | 2 × " in page and "the measured stage and the evaluation only" in page


def test_the_page_shows_all_arms_whichever_were_run(tmp_path, log, capsys):
    out = tmp_path / "results"
    arguments = ["--study", str(study_file(tmp_path)), "--out", str(out)]
    assert main([*arguments, "--report-only"], FAKE) == 2
    assert "runs.jsonl is not there" in capsys.readouterr().err
    arguments += ["--workdirs", str(tmp_path / "runs")]
    assert main([*arguments, "--arms", "perfect"], FAKE) == 0
    assert main([*arguments, "--arms", "sft", "--seeds", "0"], FAKE) == 0
    page = (out / "small.md").read_text()
    for arm, n in (("perfect", 2), ("ppo", 2), ("sft", 1)):
        assert f"| {arm} | {n} × " in page
    assert "No run is finished of `dense`" in page
    before = sorted(path.name for path in out.iterdir())
    for wrong, said in (
        (["--arms", "perfekt"], "did you mean 'perfect'"),
        (["--final"], "are not finished"),
        (["--jobs", "-1"], "--jobs = -1"),
    ):
        assert main([*arguments, *wrong], FAKE) == 2
        assert said in capsys.readouterr().err
    assert main([*arguments, "--redraw", "rl", "--report-only"], FAKE) == 0
    assert (out / "small.md").read_text() == page
    assert set(path.name for path in out.iterdir()) - set(before) == {
        "small-redraw-rl.md", "small-redraw-rl.html", "small-redraw-rl-chains-test.svg",
    }  # fmt: skip


def test_arms_of_some_seeds_are_left_out_where_others_are_asked_for(tmp_path, log, capsys):
    study_file(tmp_path, "arms=of_seed_0()")
    arguments = options(tmp_path, "--seeds", "7")
    assert main(arguments, FAKE) == 0
    assert {run for run, _ in made(log)} == {"sft-s7", "ppo-s7", "perfect-s7"}
    assert main([*arguments, "--arms", "dense"], FAKE) == 2
    assert "'dense' has only the seeds (0,), and none of (7,)" in capsys.readouterr().err


def test_a_study_without_final_problems_shares_the_file_with_one_that_looked(tmp_path, log):
    study_file(tmp_path)
    arguments = options(tmp_path)
    assert main(arguments, FAKE) == 0
    arguments += ["--arms", "sft"]
    assert main([*arguments, "--final"], FAKE) == 0
    path = study_file(tmp_path)
    path.write_text(path.read_text().replace("name='small'", "name='none', config=no_final()"))
    assert main(arguments, FAKE) == 0
    assert "chains/final" not in (tmp_path / "results/none.md").read_text()


def test_a_torn_line_is_cut_off_before_the_next(tmp_path, log):
    one = study(arms=(Arm("ppo", measure="rl"),), seeds=(0,))
    path = tmp_path / "results/runs.jsonl"
    path.parent.mkdir()
    old = '{"run": "old", "study": "o", "set": "x", "status": "failed"}\n'
    path.write_text(old + '{"run": "to')
    _, records = go(one, tmp_path)
    assert [r["run"] for r in records] == ["old", study_runs(one)[0].name]
    path.write_text('{"run": \n{"run": "x"}\n')
    with pytest.raises(ConfigError, match="line 1 is not JSON.*take it out"):
        read_records(path)
    for other in ("{}", "[1, 2]", "7"):
        path.write_text(f"{old}{other}\n")
        with pytest.raises(ConfigError, match="line 2 is no line of a run"):
            read_records(path)


def test_cores_are_dealt_out_without_overlap():
    assert core_sets([0, 1, 2, 3, 4], 2) == [(0, 2, 4), (1, 3)]
    assert core_sets([4, 7], 0) == [(4,), (7,)]
    assert core_sets([4], 3) == [(4,)]


def test_a_run_that_another_process_is_still_at_work_on_is_waited_for(tmp_path, log):
    one = study(arms=(Arm("ppo", measure="rl"),), seeds=(0,))
    workdir = tmp_path / "runs" / study_runs(one)[0].name
    workdir.mkdir(parents=True)
    holder = (workdir / "lock").open("w")
    fcntl.flock(holder, fcntl.LOCK_EX)
    released_s = []

    def release() -> None:
        released_s.append(time.time())
        holder.close()

    timer = threading.Timer(0.6, release)
    timer.start()
    good, (line,) = go(one, tmp_path)
    timer.join()
    kept = json.loads((workdir / "study.json").read_text())
    assert good and line["status"] == "finished"
    assert kept["attempts"][0]["begun_s"] >= released_s[0]
