"""The host loops' own parts: journal, batches, orders, and the label search over many responses."""

import concurrent.futures
import dataclasses
import json
import random
import time
from concurrent.futures import Future
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from prm_jax.config import Config, LabelConfig, MeshConfig, ModelConfig
from prm_jax.model.heads import PolicyModel
from prm_jax.rl.labels import chance_of_a_pass
from prm_jax.rl.lines import split_lines
from prm_jax.sharding import init_params, make_mesh
from prm_jax.stages import probing
from prm_jax.stages import search as search_stage
from prm_jax.stages.attempts import Judge, Memo, Sampling, Start
from prm_jax.stages.batches import Batches, epoch_batches, left_pad, right_pad
from prm_jax.stages.journal import Journal
from prm_jax.stages.programs import line_rows
from prm_jax.stages.rl import evenly_spaced
from prm_jax.stages.run import Run, Stream, take_cycled
from prm_jax.stages.search import Response, against_binary_search
from prm_jax.types import CallTests, LineKind, Problem, Verdict

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


# ----------------------------------------------------------------------------------- label search


def response(n_steps: int, truth: int, ends_with_newline: bool) -> Response:
    """A failing response of one token a line; its first `truth` lines can be completed."""
    ids = tuple(range(100, 100 + n_steps)) + ((1,) if ends_with_newline else ())
    return Response(
        problem=Problem(f"truth {truth} of {n_steps}", "", CallTests(())),
        split="train",
        checkpoint=1,
        ids=ids,
        passed=False,
        end_token=np.arange(n_steps),
        end_byte=np.arange(1, n_steps + 1),  # a byte a line
        kinds=(LineKind.CODE,) * n_steps,
        passes=np.zeros(n_steps, np.int64),
        samples=np.zeros(n_steps, np.int64),
    )


class ScriptedCompleter:
    """In the place of the policy: five tokens that say which wave and which sample they are."""

    places = 3  # fewer than there are searches
    calls: list[int]  # how many prefixes each call completed
    interrupt_at = 0

    def __init__(self, model, mesh, key, *, samples, **_):
        self._samples = samples
        ScriptedCompleter.calls = []

    def use(self, params) -> None:
        pass

    def complete(self, asked):
        self.calls.append(len(asked))
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        assert all(tuple(a.whole[: len(a.prefix)]) == tuple(a.prefix) for a in asked)
        waves = [a.numbers[2] & 0xFFFF for a in asked]
        return [[(wave, i, 0, 0, 0) for i in range(self._samples)] for wave in waves]


def up_to_truth(problem: Problem, kept: int) -> bool:
    return kept <= int(problem.task_id.split()[1])


class LateSandbox:
    """Verdicts come from another thread, a little later, in any order."""

    def __init__(self, saved):
        self._saved = saved
        self._pool = concurrent.futures.ThreadPoolExecutor(4)
        self._random = random.Random(0)

    def judge(self, problem: Problem, program: str):
        *kept, wave, sample, _, _, _ = json.loads(program)

        def verdict(wait_s: float) -> SimpleNamespace:
            time.sleep(wait_s)
            passed = self._saved(problem, len(kept)) and (wave, sample) == (1, 0)
            return SimpleNamespace(status="passed" if passed else "failed")

        return self._pool.submit(verdict, self._random.choice([0, 0, 0.003]))


def made_up_run(config: Config, judge):
    """A run whose tokens are their own text; a prompt is one token."""
    return SimpleNamespace(
        config=config,
        tokenizer=SimpleNamespace(prefix_ids=lambda ids, n_bytes: list(ids[:n_bytes]), eos_ids=()),
        key=lambda *numbers: None,
        policy=None,
        mesh=None,
        stops=None,
        prompt_ids=lambda problem: [9],
        program=lambda problem, ids: json.dumps(ids),
        judge=judge,
        await_some=lambda verdicts: concurrent.futures.wait(
            verdicts, return_when="FIRST_COMPLETED"
        ),
    )


def searched(
    monkeypatch, group: list[Response], kind: str, saved=up_to_truth, journal=None, label=None
):
    """Searches the group with 6 completions a prefix in waves of 2; what was spent.

    A prefix that is saved is completed by the first sample of the second wave, and by no other.
    """
    monkeypatch.setattr(probing, "PrefixCompleter", ScriptedCompleter)
    label = label or LabelConfig(samples_per_prefix=6, wave=2, search=kind)
    run = made_up_run(Config(label=label), LateSandbox(saved).judge)
    searcher = search_stage.Searcher(run, Memo(), group)
    journal = journal or SimpleNamespace(get=lambda key: None, put_all=lambda units: None)
    searcher.run(None, 1, group, journal)
    return searcher.spent


@pytest.mark.parametrize("kind", ["cheapest", "binary", "dense"])
@pytest.mark.parametrize("ends_with_newline", [False, True])
def test_all_searches_side_by_side_find_each_transition(monkeypatch, ends_with_newline, kind):
    shapes = [(n, truth) for n in range(1, 9) for truth in range(0, n + int(ends_with_newline))]
    group = [response(n, truth, ends_with_newline) for n, truth in shapes]
    spent = searched(monkeypatch, group, kind)
    for (n, truth), found in zip(shapes, group, strict=True):
        # A last token that ends a line is the whole response: nothing can follow, so it fails.
        assert found.m_star == truth
        # What passed of the last saved prefix: its first sample of the second wave.
        assert found.repair == (found.ids[:truth] + (1, 0, 0, 0, 0) if truth else ())
        labels = found.labels()
        assert labels.labels == (1,) * truth + (-1,) * (n - truth)
        probes = sum(count > 0 for count in labels.samples)
        if kind == "binary":
            assert probes <= np.ceil(np.log2(found.open_steps + 1))
        elif kind == "dense":
            assert probes == found.open_steps
        for m in range(1, n + 1):
            if (
                labels.samples[m - 1] and kind != "cheapest"
            ):  # a pass ends the search of a prefix after its second wave
                assert labels.samples[m - 1] == (4 if m <= truth else 6)
                assert labels.passes[m - 1] == (1 if m <= truth else 0)
    assert spent.completions == sum(sum(r.samples) for r in group)
    assert spent.executions == spent.completions and spent.sampled_tokens == 5 * spent.completions
    assert spent.probes == sum((np.array(r.samples) > 0).sum() for r in group)
    if kind == "dense":
        assert against_binary_search(group) == {
            "responses": len(group), "non_monotone": 0.0, "binary_agrees": 1.0,
        }  # fmt: skip


class Determined:
    """A policy that can do one thing: it goes on rightly, or wrongly once a line was wrong.

    Line i of a right program is the token i, and of a wrong one 50 + i; eight lines and an end.
    """

    places = 4

    def __init__(self, model, mesh, key, *, samples, **_):
        self._samples = samples

    def use(self, params) -> None:
        pass

    @staticmethod
    def goes_on(kept: tuple[int, ...]) -> tuple[int, ...]:
        wrong = 50 * any(token >= 50 for token in kept)
        return (*(wrong + i for i in range(len(kept), 8)), 1)

    def complete(self, asked):
        return [[self.goes_on(tuple(a.prefix[1:]))] * self._samples for a in asked]


@pytest.mark.parametrize("kind", ["cheapest", "binary"])
def test_labels_of_a_policy_without_chance_are_those_of_testing_every_line(monkeypatch, kind):
    """Every line, K completions each, every program executed: the naive way, in a loop."""
    k = 8
    group, expected, naive_tokens, naive_executions = [], [], 0, 0
    for truth in range(8):
        ids = (*range(truth), *(50 + i for i in range(truth, 8)), 1)
        one = dataclasses.replace(response(8, truth, True), ids=ids)
        saved = []
        for m in range(1, 9):
            rows = [Determined.goes_on(ids[:m]) for _ in range(k)]
            saved.append(any((*ids[:m], *row) == (*range(8), 1) for row in rows))
            naive_tokens += sum(map(len, rows))
            naive_executions += k
        group.append(one)
        expected.append((saved + [False]).index(False))
    judged = []

    def judge(problem, program):
        judged.append(program)
        future: Future = Future()
        passed = json.loads(program) == [*range(8), 1]
        future.set_result(SimpleNamespace(status="passed" if passed else "failed"))
        return future

    monkeypatch.setattr(probing, "PrefixCompleter", Determined)
    label = LabelConfig(samples_per_prefix=k, wave=2, search=kind)  # type: ignore[arg-type]
    run = made_up_run(Config(label=label), judge)
    searcher = search_stage.Searcher(run, Memo(), group)
    nothing = SimpleNamespace(get=lambda key: None, put_all=lambda units: None)
    searcher.run(None, 1, group, nothing)
    assert [r.m_star for r in group] == expected == list(range(8))
    spent = searcher.spent
    assert spent.executions == len(judged) <= naive_executions / 5
    if kind == "cheapest":
        assert spent.sampled_tokens <= naive_tokens / 4
        # A completion through the response's own lines was drawn from their prefixes too.
        assert all(r.passes[r.m_star - 1] > 0 for r in group if r.m_star)


@pytest.mark.parametrize("kind", ["cheapest", "binary"])
def test_a_prefix_is_given_up_once_a_pass_is_unlikely(monkeypatch, kind):
    found = {}
    for settle in (0.0, 0.2):
        group = [response(4, 0, True)]
        label = LabelConfig(samples_per_prefix=20, wave=2, search=kind, settle=settle)
        searched(monkeypatch, group, kind, label=label)
        assert group[0].m_star == 0
        found[settle] = int(group[0].samples.max())
    assert found[0.0] == 20
    after = found[0.2]
    assert chance_of_a_pass(after, 20 - after) < 0.2 <= chance_of_a_pass(after - 2, 22 - after)


def test_a_killed_search_goes_on_from_its_last_probes(monkeypatch, tmp_path):
    def group():
        return [response(8, truth, True) for truth in range(9)]

    whole = group()
    spent = searched(monkeypatch, whole, "binary")
    calls = sum(ScriptedCompleter.calls)
    parts = []
    for interrupt_at in (7, 11, 0):
        monkeypatch.setattr(ScriptedCompleter, "interrupt_at", interrupt_at)
        found = group()
        with Journal(tmp_path / "journal.jsonl") as journal:
            if interrupt_at:
                with pytest.raises(KeyboardInterrupt):
                    searched(monkeypatch, found, "binary", journal=journal)
            else:
                again = searched(monkeypatch, found, "binary", journal=journal)
        parts.append(sum(ScriptedCompleter.calls))
    assert [r.m_star for r in found] == list(range(9))
    assert [r.samples.tolist() for r in found] == [r.samples.tolist() for r in whole]
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(spent, seconds=0)
    # What was in flight at an interrupt is at most one wave for each place.
    assert calls <= sum(parts) <= calls + 2 * ScriptedCompleter.places


def saved_by_name(problem: Problem, kept: int) -> bool:
    """The prefixes whose lengths the problem's id names."""
    return str(kept) in problem.task_id.split()[1:]


def test_a_dense_search_tells_how_often_completions_are_not_monotone(monkeypatch):
    #          prefixes that can be completed; the dense m*, and that of the binary search
    cases = [("1 2", 2, 2), ("1 2 4", 2, 2), ("2", 0, 2), ("1 3", 1, 1), ("", 0, 0)]
    group = [
        dataclasses.replace(
            response(4, 0, ends_with_newline=True), problem=Problem(f"x {ids}", "", CallTests(()))
        )
        for ids, _, _ in cases
    ]
    passing = dataclasses.replace(group[0], passed=True)
    searched(monkeypatch, group, "dense", saved_by_name)
    assert [r.m_star for r in group] == [dense for _, dense, _ in cases]
    assert group[1].labels().labels == (1, 1, -1, -1)  # labels stay monotone; the counts do not
    assert group[1].labels().passes == (1, 1, 0, 1)
    assert against_binary_search([*group, passing]) == {
        "responses": 5, "non_monotone": pytest.approx(3 / 5), "binary_agrees": pytest.approx(4 / 5),
    }  # fmt: skip
    again = [dataclasses.replace(r, passes=r.passes * 0, samples=r.samples * 0) for r in group]
    searched(monkeypatch, again, "binary", saved_by_name)
    assert [r.m_star for r in again] == [binary for *_, binary in cases]


def test_comments_are_neutral_or_lines_like_others():
    found = dataclasses.replace(
        response(3, 0, False), kinds=(LineKind.CODE, LineKind.COMMENT, LineKind.CODE), m_star=1
    )
    assert found.labels().labels == (1, 0, -1)
    assert found.labels(neutral_comments=False).labels == (1, -1, -1)


def test_a_response_without_lines_has_nothing_to_search():
    empty = dataclasses.replace(response(1, 0, False), kinds=(), end_token=np.zeros(0, np.int64))
    assert empty.open_steps == 0
    assert json.dumps(empty.labels().labels) == "[]"


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
