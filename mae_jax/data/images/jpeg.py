"""Decodes and resizes crops of JPEGs: the pixels of Pillow to the bit, in less time.

The work is done by the C module `_jpeg`, which is built where a compiler and libjpeg-turbo are
installed. For what it does not read (other formats, damaged files, CMYK), and for everything where
it is not built, these functions return None, and the caller uses Pillow.
"""

import functools

import numpy as np
from PIL import Image

from mae_jax.data.images.arrays import as_array, as_picture
from mae_jax.data.images.limits import MAX_IMAGE_PIXELS, MAX_JPEG_SCANS

try:
    from mae_jax.data.images import _jpeg
except ImportError:
    _jpeg = None

CropBox = tuple[int, int, int, int]
"""(left, top, width, height) in pixels."""
Size = tuple[int, int]
"""(height, width) in pixels."""
BICUBIC = Image.Resampling.BICUBIC
LIMITS = MAX_IMAGE_PIXELS, MAX_JPEG_SCANS
HORIZONTAL, VERTICAL = 'horizontal', 'vertical'


def is_built() -> bool:
    """Returns whether the C module has been built."""
    return _jpeg is not None


def jpeg_size(data: bytes, channels: int) -> tuple[int, int] | None:
    """Reads the (width, height) of a JPEG from its header.

    Args:
      data: a file of any kind.
      channels: bands of the decoded image, 3, or 1 for grey JPEGs: only Pillow converts colour to
        grey.

    Returns:
      None where Pillow has to decode the file; its error explains what is wrong with a damaged one.
    """
    if not _reads(channels):
        return None
    header = _jpeg.size(data, LIMITS)
    if header is None or header[2] > channels:
        return None
    return header[:2]


def crop_jpeg(data: bytes, channels: int, box: CropBox, size: Size) -> np.ndarray | None:
    """Decodes and resizes a crop of a JPEG, equal to Pillow's `crop(...).resize(...)` to the bit.

    Args:
      data, channels: see `jpeg_size`.
      box: pixels outside of it have no influence on the result.
      size: of the result.

    Returns:
      uint8 [H, W, C]; None where Pillow has to do it (see `jpeg_size`), which includes files that
      are damaged after their header.
    """
    order = _order(box[3], box[2], *size)
    if order is None or not _reads(channels):
        return None
    pixels = np.empty((*size, channels), np.uint8)
    return pixels if _jpeg.crop(data, pixels, LIMITS, box, order == VERTICAL) else None


def decode_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """Decodes a JPEG to uint8 [H, W, C]; None where Pillow has to do it, see `jpeg_size`."""
    size = jpeg_size(data, channels)
    if size is None:
        return None
    pixels = np.empty((*size[::-1], channels), np.uint8)
    return pixels if _jpeg.decode(data, pixels, LIMITS) else None


def resize(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Resizes pixels with antialiased bicubic interpolation, equal to Pillow's to the bit.

    Args:
      pixels: uint8 [h, w, C] of 1 or 3 bands; a crop of a larger array is not copied.
      size: of the result.

    Returns:
      uint8 [H, W, C].
    """
    channels = pixels.shape[2]
    order = _order(*pixels.shape[:2], *size)
    if _jpeg is None or order is None:
        return as_array(as_picture(pixels).resize(size[::-1], BICUBIC))
    if pixels.strides[1:] != (channels, 1):
        pixels = np.ascontiguousarray(pixels)
    resized = np.empty((*size, channels), np.uint8)
    _jpeg.resize(pixels, resized, order == VERTICAL)
    return resized


def _order(height: int, width: int, new_height: int, new_width: int) -> str | None:
    """Returns which of the two passes of a resize comes first; None where Pillow has to resize.

    The order matters because values are rounded to 8 bits between the passes. Up to version 12
    Pillow begins with the horizontal pass; from 13 on it begins with the vertical one where that
    removes far more rows than columns.
    """
    if max(height * new_width, new_height * width, new_height * new_width) > MAX_IMAGE_PIXELS:
        return None
    if not _pillow_chooses():
        return HORIZONTAL if height <= 100 * width else None  # else it depends on the version
    fewer_rows, fewer_columns = height - new_height, width - new_width
    return VERTICAL if fewer_rows > max(0, 2 * fewer_columns) else HORIZONTAL


@functools.cache
def _pillow_chooses() -> bool:
    """Resizes a test picture to see whether this version of Pillow chooses the order by size."""
    picture = Image.fromarray(np.arange(0, 256 * 7, 7).astype(np.uint8).reshape(16, 16))
    starts = [picture, picture.resize((24, 16), BICUBIC), picture.resize((16, 8), BICUBIC)]
    pillows, horizontal_first, vertical_first = (
        np.asarray(start.resize((24, 8), BICUBIC)) for start in starts
    )
    assert (horizontal_first != vertical_first).any()
    return bool((pillows == vertical_first).all())


def _reads(channels: int) -> bool:
    return _jpeg is not None and channels in (1, 3)
