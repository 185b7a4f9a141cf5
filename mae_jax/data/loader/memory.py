"""Batches of arrays in memory that need no decoding and no augmentation, such as features.

It is the counterpart of `batches.py`: a batch is one indexing operation. Its order is a new
permutation in every epoch too, and a batch is a function of (seed, step).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mae_jax.data.loader.assembly import ON_HOST, Destination, put_whole
from mae_jax.data.sources.arrays import ArraySource

ORDER = 3
"""Distinguishes these random numbers from those of `transforms/views.py`."""


class MemoryLoader:
    """Shuffled training batches of an `ArraySource`, with the interface of `batches.Loader`.

    Args:
      source: arrays, whose rows are handed out unchanged.
      batch_size: rows of a global batch, of all processes together.
      rows: the rows of the global batch that this process uses.
      seed: of the order.

    Attributes:
      num_replaced: 0: there are no unreadable examples.
    """

    num_replaced = 0

    def __init__(self, source: ArraySource, *, batch_size: int, rows: Sequence[int], seed: int):
        self._source = source
        self._batch_size = batch_size
        self._rows = np.asarray(rows)
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, ORDER, epoch)).permutation(len(source))
        )

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch `{'image': [b, ...], 'label': int32 [b]}` of a step, b = len(rows)."""
        positions = step * self._batch_size + self._rows
        epochs, offsets = np.divmod(positions, len(self._source))
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            indices[of_epoch] = self._order(int(epoch))[offsets[of_epoch]]
        labels = self._source.labels[indices].astype(np.int32)
        return {'image': self._source.images[indices], 'label': labels}

    def iterate(self, start_step: int, put: Destination = ON_HOST) -> 'MemoryStream':
        """Returns a stream of the batches of steps start_step, start_step + 1, ... without end.

        Args:
          start_step: the first step.
          put: where the batches go.
        """
        return MemoryStream(lambda step: put_whole(put, self.batch_at(step)), start_step)


class MemoryStream:
    """An iterator and context manager with the interface of `stream.Stream`, always ready."""

    def __init__(self, make: Callable[[int], dict], start_step: int):
        self._make = make
        self._step = start_step

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
        self._step += 1
        return self._make(self._step - 1)

    def __enter__(self) -> 'MemoryStream':
        return self

    def __exit__(self, *exception) -> None:
        pass

    def ready(self) -> bool:
        """Returns True: `next` returns at once."""
        return True


def eval_batches(
    source: ArraySource,
    *,
    batch_size: int,
    rows: Sequence[int],
    limit: int | None = None,
    put: Destination = ON_HOST,
) -> Iterator[dict[str, Any]]:
    """Yields every example once, in order, for evaluation.

    Arguments, padding and the keys of a batch are those of `batches.eval_batches`.
    """
    examples = min(limit or len(source), len(source))
    for start in range(0, examples, batch_size):
        positions = start + np.asarray(rows)
        valid = positions < examples
        indices = positions % examples * len(source) // examples
        labels = np.where(valid, source.labels[indices], -1).astype(np.int32)
        arrays = {'image': source.images[indices], 'label': labels, 'valid': valid}
        yield put_whole(put, arrays)
