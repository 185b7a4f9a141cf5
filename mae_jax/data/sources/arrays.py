"""A source of arrays in memory."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.protocol import Example


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ArraySource:
    """Examples in memory.

    Attributes:
      images: [N, H, W, C] or [N, D], of any dtype.
      labels: int [N].
      class_names: the name of each class, in the order of the labels.
      name: a prefix of the names of the examples in messages.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    name: str = 'array'

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def identity(self) -> str:
        labels = np.asarray(self.labels, np.int64)
        return content_identity(self.name, len(self), np.ascontiguousarray(self.images), labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        name = f'{self.name}/{index}'
        return {'image': self.images[index], 'label': int(self.labels[index]), 'name': name}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FeatureSource(ArraySource):
    """Features [N, D] of images, which a `MemoryLoader` hands out without decoding or cropping."""
