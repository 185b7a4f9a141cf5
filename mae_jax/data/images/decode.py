"""Decodes the image of an example, whatever kind of file it is."""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageOps

from mae_jax.data.images.arrays import as_picture
from mae_jax.data.images.jpeg import jpeg_size
from mae_jax.data.images.limits import TIFF_MAGICS, open_picture
from mae_jax.data.images.tiff import read_tiff_data
from mae_jax.errors import UserError
from mae_jax.files.limits import read_npy

NPY_MAGIC = b'\x93NUMPY'
PILLOW_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
"""The mode of Pillow by the number of bands."""


class BadImage(UserError):
    """An image that cannot be used; the message names it. `dataset.on_error` may skip it."""


@dataclasses.dataclass(frozen=True)
class LazyJpeg:
    """A JPEG of which only the header has been read, so that a crop can be decoded alone.

    Attributes:
      record: see `decode`.
      channels: bands of the result, 1 or 3.
      size: (width, height) in pixels.
    """

    record: dict
    channels: int
    size: tuple[int, int]


def decode(
    record: dict, channels: int, apply_exif: bool = False, lazily: bool = False
) -> Image.Image | LazyJpeg | np.ndarray:
    """Decodes the image of an example to `channels` bands.

    The file may come from anybody: nothing in it is run, and one that would take more memory than
    `limits.py` allows is refused before it is decoded.

    Photographs (JPEG, PNG, WebP, ...) become 8-bit grey (1), grey and alpha (2), RGB (3) or RGBA
    (4): grey is repeated, alpha is dropped without blending, as in the original pipeline, CMYK and
    palettes are converted, and 16-bit grey is divided by 257.

    A `.npy` array or a TIFF deeper than 8 bits is data: it keeps its dtype and must have `channels`
    bands, first or last. An exception is 16-bit grey where `channels` is 3: it is a photograph.

    Args:
      record: an example of a source, of which 'image' and 'name' are used.
      channels: bands of the result.
      apply_exif: rotate and mirror the picture as its EXIF orientation demands.
      lazily: return a JPEG undecoded where `jpeg.py` can decode crops of it.

    Returns:
      A `LazyJpeg`, with `lazily`, for a JPEG that `jpeg.py` can read.
      A Pillow image of mode L or RGB where the result has 8 bits and 1 or 3 bands.
      An array [H, W, C] in all other cases.

    Raises:
      BadImage: the file is truncated, of an unknown format, too large, or has other bands.
      UserError: a library that this kind of file needs is not installed.
    """
    image = record['image']
    if lazily and not apply_exif and isinstance(image, bytes):
        size = jpeg_size(image, channels)
        if size:
            return LazyJpeg(record, channels, size)
    try:
        if isinstance(image, np.ndarray):
            return _from_array(image, channels)
        if image.startswith(NPY_MAGIC):
            return _from_array(read_npy(image), channels)
        if image.startswith(TIFF_MAGICS):
            array = read_tiff_data(image, channels)
            if array is not None:
                return _from_array(array, channels)
        return _from_pillow(open_picture(image, io.BytesIO(image)), channels, apply_exif)
    except UserError as error:
        raise type(error)(f'{record["name"]}: {error}') from error
    except Exception as error:  # decoders meet broken files with every kind of exception
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # its message is a buffer's address
            reason = 'empty' if not image else 'not an image of a known format'
        raise BadImage(f'{record["name"]} cannot be read as an image: {reason}.') from error


def _from_pillow(image: Image.Image, channels: int, apply_exif: bool) -> Image.Image | np.ndarray:
    if apply_exif:
        image = ImageOps.exif_transpose(image)
    if channels not in PILLOW_MODES:
        raise BadImage(
            f'{len(image.getbands())} bands, where dataset.channels={channels}; more than RGBA '
            'needs .npy or TIFF files.'
        )
    if image.mode == 'I' or image.mode.startswith('I;16'):
        image = _sixteen_bit_grey(np.asarray(image))
    if image.mode in ('P', 'PA'):  # RGBA first: the entries of a palette may be transparent
        image = image.convert('RGBA')
    if channels != 4 or len(image.getbands()) != 4:  # four bands that are not RGBA stay
        mode = PILLOW_MODES[channels]
        image = image if image.mode == mode else image.convert(mode)
    image.load()
    return image if channels in (1, 3) else np.asarray(image)


def _from_array(array: np.ndarray, channels: int) -> Image.Image | np.ndarray:
    if array.dtype.kind not in 'uif' or array.dtype.itemsize > 8:
        raise BadImage(f'an array of {array.dtype}; integers or floats are needed.')
    array = array.astype(array.dtype.newbyteorder('='), copy=False)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise BadImage(f'an array of shape {array.shape}; [height, width, bands] is needed.')
    if array.shape[-1] == 1 and channels == 3:
        if array.dtype == np.uint16:
            array = np.asarray(_sixteen_bit_grey(array[..., 0]))[..., None]
        array = np.repeat(array, 3, axis=-1)
    if array.shape[-1] != channels and array.shape[0] == channels:  # bands first
        array = np.moveaxis(array, 0, -1)
    if array.shape[-1] != channels:
        raise BadImage(f'shape {array.shape}, where dataset.channels={channels}.')
    if array.dtype == np.uint8 and channels in (1, 3):
        return as_picture(array)
    return np.ascontiguousarray(array)


def _sixteen_bit_grey(grey: np.ndarray) -> Image.Image:
    """Scales 0 ... 65535 to 0 ... 255, where Pillow's own conversion would clip at 255."""
    if grey.min() < 0 or grey.max() > 65535:
        raise BadImage('32-bit grey; save it as .npy or as a TIFF with dataset.channels=1.')
    return Image.fromarray(np.rint(grey / 257).astype(np.uint8))
