"""Problems that two sets share, word for word or nearly so: what was trained on tests nothing.

Prompt and solution are compared apart, as the sets of their runs of five words. A task that was
worded anew betrays itself by its solution, one that was solved anew by its prompt.
"""

import collections
import dataclasses
import functools
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Sequence

from prm_jax.types import Problem

NEAR = 0.7  # similarity from which a pair is reported
_RUN = 5  # words
_LEAST_WORDS = {"prompt": _RUN, "solution": 12}  # shorter ones are equal by chance
_SKETCH = 64
_COMMON = 200  # texts; a run of words that more have is a phrase of the set
_REMEMBERED = 4_096

_WORD = re.compile(r"\w+")
_TEST_LINE = re.compile(r"^\s*(?:assert |>>> ).*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Member:
    """One problem of one split of one set, by its texts."""

    set: str
    split: str
    task_id: str
    prompt: str
    solution: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two problems with a part that is the same (similarity 1) or nearly so.

    The similarity is |A and B| / |A or B| (Jaccard) of the runs of five words of both.
    """

    first: Member
    second: Member
    part: str  # prompt or solution
    similarity: float

    @property
    def exact(self) -> bool:
        return self.similarity == 1.0


def member(set: str, split: str, problem: Problem) -> Member:
    """A problem with the words that count: asserts and examples of a prompt do not."""
    prompt = _TEST_LINE.sub("", problem.prompt)
    return Member(set, split, problem.task_id, _words(prompt), _words(problem.solution))


def duplicates(members: Sequence[Member], counts: Callable[[Member, Member], bool]) -> list[Pair]:
    """The pairs of members that are alike and that count, the most alike first.

    A pair appears once, with the part in which it is most alike. Candidates are the pairs that
    share one of the 64 smallest hashes of their runs of words (bottom-k sketches, Broder 1997);
    a pair of similarity 0.7 shares some 45 of them. Phrases that more than 200 texts have are no
    evidence, and are passed over.
    """
    best: dict[tuple[int, int], Pair] = {}
    for part, least in _LEAST_WORDS.items():
        texts = [getattr(m, part) for m in members]
        places = [i for i, text in enumerate(texts) if text.count(" ") + 1 >= least]
        for i, j in _candidates(texts, places):
            first, second = members[i], members[j]
            if not counts(first, second):
                continue
            similarity = _similarity(texts[i], texts[j])
            known = best.get((i, j))
            if similarity >= NEAR and (known is None or known.similarity < similarity):
                best[i, j] = Pair(first, second, part, similarity)
    return sorted(best.values(), key=lambda pair: -pair.similarity)


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def _candidates(texts: Sequence[str], places: Iterable[int]) -> list[tuple[int, int]]:
    by_run: dict[int, list[int]] = collections.defaultdict(list)
    by_text: dict[str, list[int]] = collections.defaultdict(list)
    for i in places:
        by_text[texts[i]].append(i)
        for run in sorted(_runs(texts[i]))[:_SKETCH]:
            by_run[run].append(i)
    groups = [*by_text.values(), *(group for group in by_run.values() if len(group) <= _COMMON)]
    return sorted({pair for group in groups for pair in itertools.combinations(group, 2)})


def _similarity(a: str, b: str) -> float:
    left, right = _runs(a), _runs(b)
    if left == right and a != b:
        return len(left) / (len(left) + 1)  # the same runs in another order: nearly the same
    return len(left & right) / len(left | right)


@functools.lru_cache(_REMEMBERED)
def _runs(text: str) -> frozenset[int]:
    words = text.encode("utf-8", "replace").split()
    count = max(1, len(words) - _RUN + 1)
    return frozenset(zlib.crc32(b" ".join(words[i : i + _RUN])) for i in range(count))
