"""Data sets as random-access sources.

A source has `len(source)`, `source[i] -> {'image': encoded bytes or array [H,W,C], 'label': int
(-1: none), 'name': str}`, and the attributes `num_classes` (0: unlabelled), `class_names` and
`identity`, a short text that another data set, split or order would not have. It can be pickled.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from mae_jax.data.sources.splits import EVAL_SPLITS
from mae_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ArraySource:
    """Examples in memory: images, or features for a loader that hands them out as they are.

    Attributes:
      images: [N,H,W,C] or [N,D], of any dtype.
      labels: int [N].
      class_names: one a label.
      name: what the examples are called in messages.
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
        return _identity(self.name, len(self), np.ascontiguousarray(self.images), labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        name = f'{self.name}/{index}'
        return {'image': self.images[index], 'label': int(self.labels[index]), 'name': name}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FeatureSource(ArraySource):
    """Features [N,D] of images; a loader hands them out as they are."""


def digits_source(split: str) -> ArraySource:
    """scikit-learn's 1,797 digits, uint8 [8,8,1]: 80% of a fixed permutation train, the rest."""
    from sklearn.datasets import load_digits

    if split not in ('train', *EVAL_SPLITS):
        raise UserError(f'digits has no split {split!r}; it has train and validation.')
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    cut = len(order) * 4 // 5
    order = order[:cut] if split == 'train' else order[cut:]
    images = np.rint(digits.images[order, :, :, None] * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in range(10)]
    return ArraySource(images, digits.target[order], names, f'digits/{split}')


def _identity(name: str, count: int, *content: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return f'{name}:{count}:{digest.hexdigest()[:16]}'
