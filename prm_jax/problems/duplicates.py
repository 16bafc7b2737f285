"""Problems that two sets share, word for word or nearly so: what was trained on tests nothing.

Prompt and solution are compared apart, as the sets of their runs of five words. A task that was
worded anew betrays itself by its solution, one that was solved anew by its prompt.
"""

import collections
import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence

from prm_jax.types import Problem

NEAR = 0.7  # similarity from which a pair is reported
_RUN = 5  # words
_LEAST_WORDS = {"prompt": _RUN, "solution": 12}  # shorter ones are equal by chance
_SKETCH = 64
_SHARED = 0.25  # of the sketch of the later one
_COMMON = 200  # texts
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
    share a quarter of the 64 smallest hashes of their runs of words (bottom-k sketches, Broder
    1997); pairs of similarity 0.7 share four fifths of them. Runs that more than 200 texts have
    are phrases of the set and no evidence: they do not count here.
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


def _candidates(texts: Sequence[str], places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of places whose texts are equal or share enough of their sketches, without repeats."""
    by_run: dict[int, list[int]] = collections.defaultdict(list)
    by_text: dict[str, list[int]] = collections.defaultdict(list)
    for i in places:
        by_text[texts[i]].append(i)
        for run in _sketch(texts[i]):
            by_run[run].append(i)
    for j in places:
        telling = [by_run[run] for run in _sketch(texts[j]) if len(by_run[run]) <= _COMMON]
        shared = collections.Counter(i for group in telling for i in group if i < j)
        close = {i for i, n in shared.items() if n >= _SHARED * len(telling)}
        close.update(i for i in by_text[texts[j]] if i < j)
        yield from ((i, j) for i in sorted(close))


def _sketch(text: str) -> list[int]:
    return sorted(_runs(text))[:_SKETCH]


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
