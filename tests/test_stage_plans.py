"""How plans are taken from responses, and that programs keep them, in their order."""

from types import SimpleNamespace

import numpy as np
from characters import Characters

from prm_jax.config import Config
from prm_jax.rl.lines import split_lines
from prm_jax.rl.statistics import success_variance
from prm_jax.stages.attempts import Attempt
from prm_jax.stages.plans import SAMPLES, plan_variance
from prm_jax.types import CallTests, Problem

TOKENIZER = Characters()


def lines(ids):
    pieces = TOKENIZER.pieces(ids)
    text = b"".join(pieces)
    stop = text.index(b"|") + 2 if b"|\n" in text else len(text) * text.startswith(b"P")
    return split_lines(pieces, (stop, len(text)), (0, stop))


class Sampling:
    """Plans "PPi|" of sample i; programs pass if problem + plan + program is even."""

    def __init__(self):
        self.starts = []

    def run(self, params, starts, key, journal, name):
        assert params == "policy"
        found = []
        for start in starts:
            number = int(start.problem.task_id)
            if name == "plans/sft":
                assert start.prefix == ()
                # Problem 2: the third plan is not closed; the fourth response has none.
                ends = ["|\ncode", "|\ncode", "", "|\ncode"]
                texts = [f"PP{i}" + (ends[i] if number == 2 else "|\ncode") for i in range(4)]
                if number == 2:
                    texts[3] = "code"
                found.append([Attempt(TOKENIZER.response(t), "failed", True, 1) for t in texts])
            else:
                assert name == "programs/sft"
                kept = TOKENIZER.decode(start.prefix)
                self.starts.append((number, kept))
                plan = int(kept[2]) if kept else 3
                statuses = ["passed" if (number + plan + i) % 2 else "failed" for i in range(4)]
                statuses[0] = "passed" if plan else "failed"
                found.append([Attempt(start.prefix, s, True, 1) for s in statuses])
        return found


def test_programs_keep_each_plan_and_are_counted_with_it():
    run = SimpleNamespace(
        config=Config(), tokenizer=TOKENIZER, lines=lines, key=lambda *numbers: numbers
    )
    problems = [Problem(str(i), "?", CallTests(())) for i in range(3)]
    sampling = Sampling()
    found = plan_variance(run, sampling, "policy", problems, None, "sft")  # type: ignore[arg-type]
    plans = [(p, f"PP{i}|\n") for p in range(3) for i in range(SAMPLES)]
    plans = [plan for plan in plans if plan not in [(2, "PP2|\n"), (2, "PP3|\n")]]
    assert sampling.starts == [*plans, (2, "")]
    passed = np.array(
        [
            [
                [plan > 0 if i == 0 else (p + plan + i) % 2 == 1 for i in range(SAMPLES)]
                for plan in range(SAMPLES)
            ]
            for p in range(3)
        ]
    )
    passed[2, 2] = False  # nothing can follow it
    split = success_variance(passed)
    assert found["pass_rate"] == passed.mean()
    assert (found["between_plans"], found["within_plans"], found["between_problems"]) == (
        split.between_plans, split.within_plans, split.between_problems,
    )  # fmt: skip
    assert found["plan_share"] == split.plan_share
