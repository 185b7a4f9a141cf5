"""Random images made when they are used: a data set for benchmarks and plans."""

import dataclasses

import numpy as np

from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.protocol import Example

IMAGENET_EXAMPLES = 1_281_167


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Random images of 16 x 16 uniform squares, with 1,000 labels; nothing is read from a disk.

    An example is a function of (seed, whether the split is 'train', index) alone.

    Attributes:
      shape: (H, W, C) of the images, uint8.
      examples: their number.
      seed: of their pixels.
      split: any name.
    """

    shape: tuple[int, int, int]
    examples: int
    seed: int
    split: str

    num_classes = 1000
    class_names = tuple(str(label) for label in range(1000))

    @property
    def identity(self) -> str:
        fields = repr(dataclasses.astuple(self)).encode()
        return content_identity('synthetic', self.examples, fields)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Example:
        height, width, channels = self.shape
        rng = np.random.default_rng((self.seed, self.split != 'train', index))
        small = rng.integers(0, 256, (-(-height // 16), -(-width // 16), channels), np.uint8)
        image = small.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
        return {'image': image, 'label': index % 1000, 'name': f'synthetic/{self.split}/{index}'}


def synthetic_source(
    split: str,
    *,
    channels: int,
    image_size: tuple[int, int],
    seed: int,
    examples: int = IMAGENET_EXAMPLES,
    **unused,
) -> SyntheticSource:
    """Returns a `SyntheticSource` of images of this (height, width); `make_source` calls it."""
    return SyntheticSource((*image_size, channels), examples, seed, split)
