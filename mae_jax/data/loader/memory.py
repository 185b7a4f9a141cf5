"""Batches of examples that are in memory as they are to be used, such as features.

The counterpart of `loader`: nothing is decoded or drawn for an example, so a batch is a single
indexing. Its order, too, is a new permutation every epoch, and a function of (seed, step).
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mae_jax.data.sources.arrays import ArraySource

ORDER = 3  # the purpose of the random numbers drawn here


class MemoryLoader:
    """Shuffled training batches of an `ArraySource`.

    Args:
      source: what its arrays hold is handed out as it is.
      batch_size: of all processes together.
      rows: which rows of the global batch this process uses.
      seed: of the order.
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
        """`{'image': [b,...], 'label': int32 [b]}`, b = len(rows)."""
        epochs, places = np.divmod(step * self._batch_size + self._rows, len(self._source))
        picks = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            picks[here] = self._order(int(epoch))[places[here]]
        labels = self._source.labels[picks].astype(np.int32)
        return {'image': self._source.images[picks], 'label': labels}

    def iterate(self, start_step: int, put: Callable[[dict], dict] = dict) -> 'MemoryStream':
        """The batches of steps start_step, start_step + 1, ... without end."""
        return MemoryStream(lambda step: put(self.batch_at(step)), start_step)


class MemoryStream:
    """An iterator and context manager, as `workers.Stream` is; it never makes anyone wait."""

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
        return True


def eval_batches(
    source: ArraySource, *, batch_size: int, rows: Sequence[int], limit: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order; the arguments and the padding are `loader.eval_batches`'."""
    examples = min(limit or len(source), len(source))
    for start in range(0, examples, batch_size):
        places = start + np.asarray(rows)
        valid = places < examples
        picks = places % examples * len(source) // examples
        labels = np.where(valid, source.labels[picks], -1).astype(np.int32)
        yield {'image': source.images[picks], 'label': labels, 'valid': valid}
