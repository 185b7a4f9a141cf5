"""The box of a JPEG, decoded and resized: Pillow's pixels to the bit, in less time.

The work is done by the C module `_jpeg`, which is built where a compiler and libjpeg-turbo are at
hand. What it does not read (other files, damaged ones, CMYK) is None here, and left to Pillow, as
is everything where the module is not built.
"""

import functools

import numpy as np
from PIL import Image

from mae_jax.data.images.arrays import as_array, as_picture
from mae_jax.data.images.limits import MAX_IMAGE_PIXELS, MAX_JPEG_SCANS

try:
    from mae_jax.data import _jpeg
except ImportError:
    _jpeg = None

Box = tuple[int, int, int, int]
Size = tuple[int, int]
BICUBIC = Image.Resampling.BICUBIC
LIMITS = MAX_IMAGE_PIXELS, MAX_JPEG_SCANS
ACROSS, DOWN = 'across', 'down'


def is_built() -> bool:
    """Whether the C module is there."""
    return _jpeg is not None


def jpeg_size(data: bytes, channels: int) -> tuple[int, int] | None:
    """(width, height) of a JPEG that `crop_jpeg` and `decode_jpeg` read, as its header says.

    Args:
      channels: 3, or 1 for grey JPEGs: colour is turned to grey by Pillow alone.

    Returns:
      None for what is to be left to Pillow, which says what is wrong with a file if something is.
    """
    if not _reads(channels):
        return None
    header = _jpeg.size(data, LIMITS)
    if header is None or header[2] > channels:
        return None
    return header[:2]


def crop_jpeg(data: bytes, channels: int, box: Box, size: Size) -> np.ndarray | None:
    """A box of a JPEG, resized as by Pillow's `crop(box).resize(size, BICUBIC)`, to the bit.

    Args:
      box: (left, top, width, height); pixels outside have no influence.
      size: (height, width) of the result.

    Returns:
      uint8 [H,W,C]; None where Pillow is to do it: see `jpeg_size`. A file that is damaged after
      its header is noticed only here.
    """
    order = _order(box[3], box[2], *size)
    if order is None or not _reads(channels):
        return None
    pixels = np.empty((*size, channels), np.uint8)
    return pixels if _jpeg.crop(data, pixels, LIMITS, box, order == DOWN) else None


def decode_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """The whole of a JPEG as uint8 [H,W,C]; None where Pillow is to do it: see `jpeg_size`."""
    size = jpeg_size(data, channels)
    if size is None:
        return None
    pixels = np.empty((*size[::-1], channels), np.uint8)
    return pixels if _jpeg.decode(data, pixels, LIMITS) else None


def resize(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Pillow's antialiased bicubic, to the bit.

    Args:
      pixels: uint8 [h,w,C] of 1 or 3 bands; a crop of a larger array is not copied.
      size: (height, width) of the result.

    Returns:
      uint8 [H,W,C].
    """
    channels = pixels.shape[2]
    order = _order(*pixels.shape[:2], *size)
    if _jpeg is None or order is None:
        return as_array(as_picture(pixels).resize(size[::-1], BICUBIC))
    if pixels.strides[1:] != (channels, 1):
        pixels = np.ascontiguousarray(pixels)
    resized = np.empty((*size, channels), np.uint8)
    _jpeg.resize(pixels, resized, order == DOWN)
    return resized


def _order(height: int, width: int, new_height: int, new_width: int) -> str | None:
    """The pass that comes first; None where that is best left to Pillow.

    It matters, because what lies between the passes is rounded to 8 bits. Up to version 12 Pillow
    begins across; from 13 on it begins down where that takes away far more rows than columns.
    """
    if max(height * new_width, new_height * width, new_height * new_width) > MAX_IMAGE_PIXELS:
        return None
    if not _pillow_chooses():
        return ACROSS if height <= 100 * width else None  # of these some versions begin down
    fewer_rows, fewer_columns = height - new_height, width - new_width
    return DOWN if fewer_rows > max(0, 2 * fewer_columns) else ACROSS


@functools.cache
def _pillow_chooses() -> bool:
    """Whether the order depends on the sizes: Pillow is given a picture where it shows."""
    picture = Image.fromarray(np.arange(0, 256 * 7, 7).astype(np.uint8).reshape(16, 16))
    across, down = picture.resize((24, 16), BICUBIC), picture.resize((16, 8), BICUBIC)
    wholes = [picture, across, down]
    whole, across, down = (np.asarray(part.resize((24, 8), BICUBIC)) for part in wholes)
    assert (across != down).any()
    return bool((whole == down).all())


def _reads(channels: int) -> bool:
    return _jpeg is not None and channels in (1, 3)
