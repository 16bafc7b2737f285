"""Batches of token rows of like length: the order of an epoch, and padding to few widths.

The batch of a step depends on the seed and the step alone, so a resumed run sees the same batches.
"""

from collections.abc import Callable, Sequence

import numpy as np

WINDOW = 8  # batches among which rows are sorted by length
WIDTH_STEP = 32  # rows are padded to a multiple of this: each width is one compilation


def epoch_batches(
    lengths: Sequence[int], batch_size: int, permutation: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Row indices of one epoch's batches, `[batch_size]` each.

    Shuffled rows are sorted by length within a window of batches, and the batches of a window are
    shuffled again. Rows that do not fill a batch wait for another epoch; fewer rows than one batch
    are repeated.
    """
    order = np.asarray(permutation)
    if len(order) < batch_size:
        order = np.resize(order, batch_size)
    order = order[: len(order) // batch_size * batch_size]
    batches: list[np.ndarray] = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(np.asarray(lengths)[window], kind="stable")]
        cut = window.reshape(-1, batch_size)
        batches += [cut[i] for i in rng.permutation(len(cut))]
    return batches


class Batches:
    """The endless, seeded stream of batches over rows of given lengths; `batches[step]`."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        permutation_of_epoch: Callable[[int], np.ndarray],
        seed: int,
    ):
        self._lengths = lengths
        self._batch_size = batch_size
        self._permutation_of_epoch = permutation_of_epoch
        self._seed = seed
        self._per_epoch = max(1, len(lengths) // batch_size)
        self._epoch: tuple[int, list[np.ndarray]] | None = None

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self._per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            permutation = self._permutation_of_epoch(epoch)
            self._epoch = (
                epoch,
                epoch_batches(self._lengths, self._batch_size, permutation, rng),
            )
        return self._epoch[1][place]


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token rows at the left of `[N, T]`, T a multiple of WIDTH_STEP, and the mask of tokens."""
    width = _rounded(max(len(row) for row in rows))
    tokens = np.full((len(rows), width), pad_id, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    valid = np.arange(width)[None, :] < np.array([len(row) for row in rows])[:, None]
    return tokens, valid


def left_pad(
    rows: Sequence[Sequence[int]], pad_id: int, width: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Token rows at the right of `[N, P]`, and the mask of tokens.

    P is `width`, or the longest row rounded up to WIDTH_STEP.
    """
    width = width or _rounded(max(len(row) for row in rows))
    tokens = np.full((len(rows), width), pad_id, np.int32)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = row
    valid = np.arange(width)[None, :] >= width - np.array([len(row) for row in rows])[:, None]
    return tokens, valid


def _rounded(length: int) -> int:
    return -(-max(length, 1) // WIDTH_STEP) * WIDTH_STEP
