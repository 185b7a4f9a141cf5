"""Some of the examples of a source, and a split of a source that has none."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.protocol import Example, Source
from mae_jax.data.sources.splits import choose_held_out
from mae_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Subset:
    """Examples of a source by their numbers.

    Attributes:
      source: of which they are.
      rows: int [n], in the order of the examples.
    """

    source: Source
    rows: np.ndarray

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> Sequence[str]:
        return self.source.class_names

    @property
    def labels(self) -> np.ndarray | None:
        labels = getattr(self.source, 'labels', None)
        return None if labels is None else np.asarray(labels)[self.rows]

    @property
    def class_colours(self) -> np.ndarray | None:
        return getattr(self.source, 'class_colours', None)

    @functools.cached_property
    def identity(self) -> str:
        rows = np.ascontiguousarray(self.rows, np.int64)
        return content_identity('subset', len(self), self.source.identity.encode(), rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.rows[index])]


def subset(source: Source, rows: Sequence[int] | np.ndarray) -> Subset:
    """Returns these examples of a source."""
    return Subset(source, np.asarray(rows, np.int64))


def hold_out(source: Source, share: float | None = None) -> tuple[Subset, Subset]:
    """Splits a source: (training examples, held-out ones); always the same for equal labels.

    Args:
      source: of examples with or without labels.
      share: as of `choose_held_out`.

    Raises:
      UserError: there is one example only.
    """
    count = len(source)
    if count < 2:
        raise UserError('one image only: too few to keep one for evaluation.')
    order = np.random.RandomState(0).permutation(count)  # its stream never changes
    ranks = np.empty(count, int)
    ranks[order] = np.arange(count)
    labels = getattr(source, 'labels', None) if share is None and source.num_classes else None
    # A share of .05 is that of versions without a rule: count // 20, rounded down.
    keys = (ranks + 1 - 1e-6) / count
    held_out = choose_held_out(keys, None if labels is None else np.asarray(labels), share)
    return tuple(subset(source, np.flatnonzero(held_out == each)) for each in (False, True))
