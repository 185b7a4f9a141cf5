"""A source of arrays in memory."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.labels import read_labels
from mae_jax.data.sources.protocol import Example
from mae_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ArraySource:
    """Images in memory, or in a file that NumPy maps into memory.

        mae_jax.run(config, 'runs/mine', train=mae_jax.ArraySource(images, labels))

    Attributes:
      images: [N, H, W, C] or [N, H, W], integers or floats, as they are; `dataset.channels`,
        `.scale`, `.mean` and `.std` must suit them. (Features [N, D] for the package's own use.)
      labels: a number or a name for each image (kept as int [N]); None where there are none.
      class_names: the name of each class, in the order of the labels; None takes them from the
        labels.
      name: a prefix of the names of the examples in messages.

    Raises:
      UserError: the arrays have other shapes, or a label is not of a class.
    """

    images: np.ndarray
    labels: Sequence | np.ndarray | None = None
    class_names: Sequence[str] | None = None
    name: str = 'array'

    def __post_init__(self):
        images = np.asarray(self.images)
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim not in (2, 4) or images.dtype.kind not in 'iuf' or not len(images):
            raise UserError(
                f'images of shape {images.shape} and type {images.dtype}: give numbers '
                '[N, H, W, C] or [N, H, W].'
            )
        labels, names = read_labels(self.labels, self.class_names, len(images))
        if labels is None:
            labels = np.full(len(images), -1, np.int32)
        values = {'images': images, 'labels': labels, 'class_names': names}
        for field, value in values.items():
            object.__setattr__(self, field, value)

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
