"""The label search over many responses side by side, with stand-ins for policy and sandbox."""

import concurrent.futures
import dataclasses
import json
import random
import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

from prm_jax.config import Config, LabelConfig
from prm_jax.rl.labels import chance_of_a_pass, prm_targets
from prm_jax.stages import probing
from prm_jax.stages import search as search_stage
from prm_jax.stages.attempts import Memo
from prm_jax.stages.journal import Journal
from prm_jax.stages.search import Response, against_binary_search
from prm_jax.types import CallTests, LineKind, Problem


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


class Chancy(Determined):
    """Each line that it writes after right ones is right with the same chance."""

    CHANCE = 0.6

    def __init__(self, model, mesh, key, **sizes):
        super().__init__(model, mesh, key, **sizes)
        self._random = random.Random(0)

    def goes_on(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        right = all(token < 50 for token in kept)
        lines = []
        for i in range(len(kept), 8):
            right = right and self._random.random() < self.CHANCE
            lines.append(i if right else 50 + i)
        return (*lines, 1)

    def complete(self, asked):
        return [[self.goes_on(tuple(a.prefix[1:])) for _ in range(self._samples)] for a in asked]


@pytest.mark.parametrize(
    ("kind", "wave", "right"),
    [("cheapest", 8, False), ("cheapest", 2, False), ("binary", 2, False), ("binary", 8, True)],
)
def test_what_is_learned_of_single_completions_is_unbiased_and_rates_only_of_whole_waves(
    monkeypatch, kind, wave, right
):
    """Prefix m of right lines can be completed with chance .6^(8 - m), which is the mean of what a
    PRM learns of it: of counts whatever the search, since the sum of passes over the sum of
    completions is the chance where a prefix ends at a pass (Wald's identity); of rates only where
    all of K are drawn. Four standard errors are allowed."""
    policy = Chancy(None, None, None, samples=1)
    group = []
    for _ in range(1500):
        ids = policy.goes_on(())
        passed = ids == (*range(8), 1)
        group.append(dataclasses.replace(response(8, 0, True), ids=ids, passed=passed))

    def judge(problem, program):
        future: Future = Future()
        passed = json.loads(program) == [*range(8), 1]
        future.set_result(SimpleNamespace(status="passed" if passed else "failed"))
        return future

    monkeypatch.setattr(probing, "PrefixCompleter", Chancy)
    failing = [r for r in group if not r.passed]
    label = LabelConfig(samples_per_prefix=8, wave=wave, search=kind)
    searcher = search_stage.Searcher(made_up_run(Config(label=label), judge), Memo(), failing)
    nothing = SimpleNamespace(get=lambda key: None, put_all=lambda units: None)
    searcher.run(None, 1, failing, nothing)

    def learned(m: int, some: list[Response], target) -> tuple[np.ndarray, np.ndarray]:
        """Shares that passed and weights, of the right prefixes of m steps."""
        of = [r for r in some if r.ids[:m] == tuple(range(m))]
        pairs = [prm_targets(r.labels(), r.passed, target=target, loss_on="all") for r in of]
        shares = np.array([(targets[m - 1] + 1) / 2 for targets, _ in pairs])
        return shares, np.array([weights[m - 1] for _, weights in pairs])

    too_high = []
    for m in range(1, 7):
        chance = Chancy.CHANCE ** (8 - m)
        shares, n = learned(m, group, "counts")
        error = np.sqrt(chance * (1 - chance) / n.sum())
        assert abs(np.average(shares, weights=n) - chance) < 4 * error
        shares, known = learned(m, failing, "rate")
        rates = shares[known > 0]
        if len(rates) > 50:
            too_high.append((rates.mean() - chance) / (rates.std() / np.sqrt(len(rates))))
    assert (sum(too_high) / np.sqrt(len(too_high)) < 4) == right  # all lengths together


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
