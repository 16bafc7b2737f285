"""The host loops' own parts: journal, batches, orders, samples judged in bulk."""

from concurrent.futures import Future
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from prm_jax.config import Config, MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel
from prm_jax.rl.lines import split_lines
from prm_jax.sharding import init_params, make_mesh
from prm_jax.stages.attempts import Judge, Memo, Sampling, Start
from prm_jax.stages.batches import Batches, epoch_batches, left_pad, right_pad
from prm_jax.stages.journal import Journal
from prm_jax.stages.programs import line_rows
from prm_jax.stages.rl import evenly_spaced
from prm_jax.stages.run import Run, Stream, take_cycled
from prm_jax.types import CallTests, Problem, Verdict

# ------------------------------------------------------------------------------------- journal


def test_a_journal_keeps_what_was_put_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "stage/journal.jsonl"
    with Journal(path) as journal:
        journal.put("a", [1, 2])
        journal.put("b", {"x": "y"})
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert journal.get("a") == ([1, 2] if cut >= whole.index(b"\n") + 1 else None)
            assert journal.get("b") is None
            journal.put("b", "again")
        with Journal(path) as journal:
            assert journal.get("b") == "again"


# ------------------------------------------------------------------------------ batches and order


def test_an_epoch_has_every_row_at_most_once_and_batches_of_like_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 1000)
    batches = epoch_batches(lengths, 32, rng.permutation(1000), rng)
    rows = np.concatenate(batches)
    assert len(batches) == 31 and len(set(rows.tolist())) == len(rows)
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 30  # unsorted batches of 32 spread over nearly all of 1..99


def test_fewer_rows_than_a_batch_are_repeated():
    batches = epoch_batches([5, 6, 7], 8, np.arange(3), np.random.default_rng(0))
    assert len(batches) == 1 and set(batches[0].tolist()) == {0, 1, 2}


def test_a_batch_depends_on_its_step_alone():
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(50)

    batches = Batches(list(range(50)), 8, order, seed=3)
    forward = [batches[step].tolist() for step in range(20)]
    fresh = Batches(list(range(50)), 8, order, seed=3)
    for step in (19, 3, 7, 0):
        assert fresh[step].tolist() == forward[step]


def test_take_cycled_walks_through_epochs_without_gap_or_repeat():
    orders = [[2, 0, 1], [1, 2, 0], [0, 1, 2]]
    stream = [take_cycled(lambda e: np.array(orders[e]), 3, i, 1)[0] for i in range(9)]
    assert stream == [2, 0, 1, 1, 2, 0, 0, 1, 2]
    assert take_cycled(lambda e: np.array(orders[e]), 3, 2, 5) == stream[2:7]


@pytest.mark.parametrize(("steps", "n"), [(40, 4), (10, 3), (4, 4), (7, 2)])
def test_checkpoints_are_evenly_spaced_and_end_with_the_run(steps, n):
    spaced = evenly_spaced(steps, n)
    assert spaced[-1] == steps and len(set(spaced)) == n
    gaps = np.diff([0, *spaced])
    assert gaps.max() - gaps.min() <= 1


def test_padding_on_either_side_keeps_rows_and_marks_them():
    rows = [[5, 6, 7], [8]]
    tokens, valid = left_pad(rows, 0, 4)
    assert tokens.tolist() == [[0, 5, 6, 7], [0, 0, 0, 8]]
    assert valid.tolist() == [[False, True, True, True], [False, False, False, True]]
    tokens, valid = right_pad(rows, 0)
    assert tokens[0, :4].tolist() == [5, 6, 7, 0] and valid.sum(axis=1).tolist() == [3, 1]


def test_the_memo_tells_problems_and_programs_apart():
    memo = Memo()
    one, other = Problem("one", "", CallTests(())), Problem("other", "", CallTests(()))
    memo.put(one, "return 1", "passed")
    assert memo.get(one, "return 1\n \n") == "passed"  # trailing blanks change nothing
    for blank in "\xa0\x0b\x1c\x85\u3000":  # but these are syntax errors
        assert memo.get(one, "return 1" + blank) is None
    assert memo.get(one, "return 2") is None
    assert memo.get(other, "return 1") is None


def test_streams_of_randomness_differ_and_repeat():
    run = SimpleNamespace(config=Config(seed=7))
    keys = [
        tuple(np.asarray(jax.random.key_data(Run.key(run, stream, *place))).tolist())
        for stream in Stream
        for place in ((), (0,), (1,), (0, 1))
    ]
    assert len(set(keys)) == len(keys)
    again = Run.order(run, Stream.RL_ORDER, 30, 2)
    np.testing.assert_array_equal(again, Run.order(run, Stream.RL_ORDER, 30, 2))
    assert (again != Run.order(run, Stream.RL_ORDER, 30, 3)).any()


# --------------------------------------------------------------------- sampling, judging in bulk

MODEL = ModelConfig(layers=1, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=32)
ONE = make_mesh(MeshConfig(), jax.devices()[:1])
EIGHT = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())


class CountingJudge:
    """Passes programs of an even number of tokens, and counts what it is asked to run."""

    def __init__(self):
        self.programs: list[tuple[str, str]] = []

    def __call__(self, problem: Problem, program: str) -> Future:
        self.programs.append((problem.task_id, program))
        future: Future = Future()
        status = "passed" if len(program) % 2 == 0 else "failed"
        future.set_result(Verdict(status, 0, 1))
        return future


def sampled_in_bulk(mesh, journal: Journal, memo: Memo | None = None):
    """30 starts x 10 samples, more than one unit, from a tiny policy whose tokens are letters."""
    vocab = 8
    policy = PolicyModel(MODEL, vocab, 0)
    judge = CountingJudge()
    run = SimpleNamespace(
        config=Config(max_completion_tokens=3),
        mesh=mesh,
        policy=policy,
        tokenizer=SimpleNamespace(
            eos_ids=(1,),
            pad_id=0,
            pieces=lambda ids: [b"..abcdefgh"[i : i + 1] for i in ids if i > 1],
        ),
        stops=None,
        program=lambda problem, ids: "".join("..abcdefgh"[i] for i in ids if i > 1),
        prompt_ids=lambda problem: [2 + int(c) % 6 for c in problem.task_id],
        judge=judge,
    )
    params = init_params(policy, mesh, jax.random.key(0))
    starts = [
        Start(Problem(str(10 ** (i % 4) + i), "", CallTests(())), (3,) if i % 3 else ())
        for i in range(30)
    ]
    sampling = Sampling(run, memo or Memo(), samples=10, temperature=1.0)
    with jax.set_mesh(mesh):
        found = sampling.run(params, starts, jax.random.key(1), journal, "bulk")
    return starts, found, judge


def test_bulk_samples_are_the_same_on_one_device_and_on_eight(tmp_path):
    with Journal(tmp_path / "one.jsonl") as journal:
        _, one, _ = sampled_in_bulk(ONE, journal)
    with Journal(tmp_path / "eight.jsonl") as journal:
        _, eight, _ = sampled_in_bulk(EIGHT, journal)
    assert one == eight
    assert len({attempt.ids for row in one for attempt in row}) > 50


def test_equal_programs_are_run_once_and_counted_once(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        starts, found, judge = sampled_in_bulk(ONE, journal)
        assert len(set(judge.programs)) == len(judge.programs)
        assert sum(a.executed for row in found for a in row) == len(judge.programs) < 300
        for start, row in zip(starts, found, strict=True):
            for attempt in row:
                assert attempt.ids[: len(start.prefix)] == start.prefix
                assert attempt.sampled_tokens == len(attempt.ids) - len(start.prefix)
                assert len(attempt.ids) <= 3
        # What is journaled is neither sampled nor run again, and fills the memo.
        memo = Memo()
        _, again, judge = sampled_in_bulk(EIGHT, journal, memo)
        assert again == found and not judge.programs
    with Journal(tmp_path / "another.jsonl") as journal:
        _, known, judge = sampled_in_bulk(ONE, journal, memo)
        assert not judge.programs and not any(a.executed for row in known for a in row)


def test_what_was_executed_is_counted_once_though_a_kill_lost_the_run_that_was_counted():
    run = SimpleNamespace(program=lambda problem, ids: str(ids[-1]))
    problem = Problem("p", "", CallTests(()))
    rows = [[[1, 7], "passed", True, 2], [[2, 7], "passed", False, 2], [[3, 8], "failed", True, 2]]
    for kept in (rows, rows[1:], rows[::-1]):
        found = Judge(run, Memo()).recall(problem, kept)
        assert sum(attempt.executed for attempt in found) == 2  # two programs: 7 and 8


def test_a_unit_about_other_starts_is_done_again(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        _, found, _ = sampled_in_bulk(ONE, journal)
    path.write_text(path.read_text().replace('"about": "', '"about": "other '))
    with Journal(path) as journal:
        _, again, judge = sampled_in_bulk(ONE, journal)
    assert again == found and judge.programs


def test_what_is_said_of_a_step_stands_at_its_line_and_not_at_a_blank_one():
    lines = split_lines([b"a\n", b"# c\n\n", b"  \n", b"x = 1\ny\n", b""])
    rows = line_rows(lines, "said", ["of a", "of c", "of y"])
    assert [(row["text"], row["kind"], row["said"]) for row in rows] == [
        ("a", "code", "of a"),
        ("# c", "comment", "of c"),
        ("", "blank", None),
        ("  ", "blank", None),
        ("x = 1", "code", None),  # shares its last token with the next
        ("y", "code", "of y"),
    ]
