"""The corruptions of ImageNet-C, made of images of one's own (Hendrycks & Dietterich 2019).

The pixels are those of the package `imagecorruptions`, which has the benchmark's own functions and
constants. It draws from NumPy's global generator: here each image has a key of its own, so that
neither threads nor processes nor the order of the work change a pixel.
"""

import dataclasses
import functools
import inspect
import threading
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mae_jax.data.images.arrays import as_array
from mae_jax.data.images.decode import BadImage, decode
from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.protocol import Example, Source
from mae_jax.data.transforms.crops import Size, center_crop
from mae_jax.errors import UserError, brief

CORRUPTIONS = (
    *('gaussian_noise', 'shot_noise', 'impulse_noise'),
    *('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    *('snow', 'frost', 'fog', 'brightness'),
    *('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
)
"""In the benchmark's order: noise, blur, weather, digital. The place of each is part of its key."""
SEVERITIES = (1, 2, 3, 4, 5)
SHORT_SIDE = 224
"""Pixels at which images are corrupted, for which the benchmark's radii and amplitudes are made."""
CORRUPTION = 16
"""The purpose of these random numbers; `views.py` lists others."""

_lock = threading.Lock()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CorruptedSource:
    """The images of a source, cropped as for evaluation at `size` and then corrupted.

    Attributes:
      source: of 8-bit images, grey or RGB.
      size: (height, width) in pixels at which images are corrupted.
      channels: of the result, 1 or 3.
      corruption: one of `CORRUPTIONS`; None leaves the crop as it is.
      severity: from 1 to 5.
      seed: of the random numbers.
      crop_share: as of `crops.center_crop`.
      apply_exif: as of `decode`.

    Raises (from an item):
      BadImage: the image cannot be read, or is not of 8 bits.
    """

    source: Source
    size: Size
    channels: int
    corruption: str | None = None
    severity: int = 1
    seed: int = 0
    crop_share: float | None = None
    apply_exif: bool = False

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> Sequence[str]:
        return self.source.class_names

    @property
    def reading(self) -> Sequence[str]:
        return getattr(self.source, 'reading', ())

    @property
    def identity(self) -> str:
        fields = [getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'source']
        content = f'{self.source.identity} {fields}'
        return content_identity('corrupted', len(self), content.encode())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        record = self.source[index]
        image = decode(record, 3, self.apply_exif, lazily=True)
        pixels = np.ascontiguousarray(center_crop(image, self.size, self.crop_share))
        if pixels.dtype != np.uint8:
            raise BadImage(
                f'{record["name"]} has pixels of {pixels.dtype}: corruptions are defined for 8-bit '
                'images.'
            )
        if self.corruption:
            kind = CORRUPTIONS.index(self.corruption)
            key = (self.seed, CORRUPTION, kind, self.severity, index)
            pixels = corrupt(pixels, self.corruption, self.severity, key)
        if self.channels == 1:
            pixels = as_array(Image.fromarray(pixels).convert('L'))
        return {**record, 'image': pixels}


def canvas_size(image_size: Size) -> Size:
    """Returns the size, of the proportions of a model's images, whose short side is 224 pixels."""
    return tuple(round(side * SHORT_SIDE / min(image_size)) for side in image_size)


def corrupt(
    pixels: UInt8[np.ndarray, 'H W 3'], corruption: str, severity: int, key: Sequence[int]
) -> UInt8[np.ndarray, 'H W 3']:
    """Corrupts an image; the result depends on the arguments alone.

    Args:
      pixels: of an image of at least 32 pixels a side.
      corruption: one of `CORRUPTIONS`.
      severity: from 1 to 5.
      key: non-negative integers, of which the random numbers are a function.

    Raises:
      UserError: the package that corrupts images is not installed.
    """
    function = getattr(corruption_functions(), corruption)
    words = np.random.SeedSequence(key).generate_state(8)
    # Two of them have a generator of their own, which is not keyed unless it is told how.
    own = {'seed': int(words[0])} if 'seed' in inspect.signature(function).parameters else {}
    with _lock:
        before = np.random.get_state()
        np.random.seed(words)
        try:
            corrupted = function(Image.fromarray(pixels), severity, **own)
        finally:
            np.random.set_state(before)
    return np.uint8(corrupted)


@functools.cache
def corruption_functions() -> ModuleType:
    """Imports the functions that corrupt images.

    Raises:
      UserError: their package is not installed, or does not work.
    """
    try:
        from imagecorruptions import corruptions

        return corruptions
    except ImportError as error:
        raise UserError(
            f'to corrupt images of your own ({brief(error)}), install imagecorruptions-imaug: '
            "pip install 'mae_jax[robustness]'."
        ) from error
