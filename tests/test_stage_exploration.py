"""What a PPO stage solved: counted over all steps, and over a kill."""

import json

from prm_jax.stages.exploration import FILE, Exploration


def test_problems_and_solutions_are_counted_once(tmp_path):
    with Exploration(tmp_path, 0) as found:
        found.add(0, ["a", "b", "b"], [("b", "1")])
        found.add(1, ["a", "c", "b"], [("a", "1"), ("b", "1")])
        found.add(2, ["b", "c", "c"], [("b", "2")])
    wanted = {"problems": 9, "asked": 3, "solved": 2, "distinct_solutions": 3}
    assert found.counts(9) == wanted
    assert found.programs() == 9


def test_nothing_was_solved(tmp_path):
    with Exploration(tmp_path, 0) as found:
        found.add(0, ["a"], [])
    assert found.counts(2) == {"problems": 2, "asked": 1, "solved": 0, "distinct_solutions": 0}


def test_a_run_that_goes_on_forgets_what_it_will_do_again(tmp_path):
    with Exploration(tmp_path, 0) as found:
        for step in range(4):
            found.add(step, [f"p{step}"], [(f"p{step}", "1")])
        found.flush()
        kept = (tmp_path / FILE).read_text()
        assert kept.count("\n") == 4
        found.add(4, ["never written"], [])
    (tmp_path / FILE).write_text(kept + '{"step": 4, "asked"')  # torn by a kill
    with Exploration(tmp_path, 2) as again:
        again.add(2, ["q"], [])
    assert again.counts(5) == {"problems": 5, "asked": 3, "solved": 2, "distinct_solutions": 2}
    assert again.programs() == 3
    steps = [json.loads(line)["step"] for line in (tmp_path / FILE).read_text().splitlines()]
    assert steps == [0, 1, 2]
