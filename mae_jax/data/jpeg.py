"""The box of a JPEG, decoded and resized: Pillow's pixels to the bit, in less time.

The work is done by the C module `_jpeg`, which is built where a compiler and libjpeg-turbo are at
hand. What it does not read (other files, damaged ones, CMYK) is None here, and left to Pillow, as
is everything where the module is not built.
"""

import numpy as np
from PIL import Image

from mae_jax.data.image_limits import MAX_IMAGE_PIXELS, check_scans

try:
    from mae_jax.data import _jpeg
except ImportError:
    _jpeg = None

Box = tuple[int, int, int, int]
Size = tuple[int, int]


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
    if not _may_be_read(data, channels):
        return None
    header = _jpeg.size(data, MAX_IMAGE_PIXELS)
    if header is None or header[2] > channels:
        return None
    return header[:2]


def crop_jpeg(
    data: bytes, channels: int, box: Box, size: Size, flip: bool = False
) -> np.ndarray | None:
    """A box of a JPEG, resized as by Pillow's `crop(box).resize(size, BICUBIC)`, to the bit.

    Args:
      box: (left, top, width, height); pixels outside have no influence.
      size: (height, width) of the result.
      flip: left to right, after the resize.

    Returns:
      uint8 [H,W,C]; None where Pillow is to do it: see `jpeg_size`. A file that is damaged after
      its header is noticed only here.
    """
    too_large = max(box[3], size[0]) * size[1] > MAX_IMAGE_PIXELS
    if too_large or not _may_be_read(data, channels):
        return None
    pixels = np.empty((*size, channels), np.uint8)
    return pixels if _jpeg.crop(data, pixels, MAX_IMAGE_PIXELS, box, flip) else None


def decode_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """The whole of a JPEG as uint8 [H,W,C]; None where Pillow is to do it: see `jpeg_size`."""
    size = jpeg_size(data, channels)
    if size is None:
        return None
    pixels = np.empty((*size[::-1], channels), np.uint8)
    return pixels if _jpeg.decode(data, pixels, MAX_IMAGE_PIXELS) else None


def resize(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Pillow's antialiased bicubic, to the bit.

    Args:
      pixels: uint8 [h,w,C] of 1 or 3 bands; a crop of a larger array is not copied.
      size: (height, width) of the result.

    Returns:
      uint8 [H,W,C].
    """
    channels = pixels.shape[2]
    if _jpeg is None:
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
        resized = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
        return resized.reshape(*size, channels)
    if pixels.strides[1:] != (channels, 1):
        pixels = np.ascontiguousarray(pixels)
    resized = np.empty((*size, channels), np.uint8)
    _jpeg.resize(pixels, resized)
    return resized


def _may_be_read(data: bytes, channels: int) -> bool:
    if _jpeg is None or channels not in (1, 3) or data[:2] != b'\xff\xd8':
        return False
    try:
        check_scans(data)
    except ValueError:
        return False
    return True
