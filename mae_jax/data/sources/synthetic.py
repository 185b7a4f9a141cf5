"""Data sets as random-access sources.

A source has `len(source)`, `source[i] -> {'image': encoded bytes or array [H,W,C], 'label': int
(-1: none), 'name': str}`, and the attributes `num_classes` (0: unlabelled), `class_names` and
`identity`, a short text that another data set, split or order would not have. It can be pickled.
"""

import dataclasses

import numpy as np

from mae_jax.data.sources.arrays import _identity

IMAGENET_EXAMPLES = 1_281_167


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Smooth random pictures made from (seed, split, index); nothing is read. 1,000 labels."""

    shape: tuple[int, int, int]
    examples: int
    seed: int
    split: str

    num_classes = 1000
    class_names = tuple(str(label) for label in range(1000))

    @property
    def identity(self) -> str:
        return _identity('synthetic', self.examples, repr(dataclasses.astuple(self)).encode())

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> dict:
        height, width, channels = self.shape
        rng = np.random.default_rng((self.seed, self.split != 'train', index))
        small = rng.integers(0, 256, (-(-height // 16), -(-width // 16), channels), np.uint8)
        image = small.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
        return {'image': image, 'label': index % 1000, 'name': f'synthetic/{self.split}/{index}'}
