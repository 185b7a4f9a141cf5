"""Decodes the image of an example, whatever kind of file it is."""

import dataclasses

import numpy as np
from PIL import Image

from mae_jax.data.images.arrays import as_array, as_picture, upright
from mae_jax.data.images.jpeg import jpeg_size
from mae_jax.data.images.limits import TIFF_MAGICS
from mae_jax.data.images.pictures import read_picture
from mae_jax.data.images.tiff import read_tiff
from mae_jax.errors import UserError
from mae_jax.files.limits import read_npy

NPY_MAGIC = b'\x93NUMPY'
PILLOW_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
"""The mode of Pillow by the number of bands."""
MAX_VALUE = 1e30
"""Larger numbers mark missing pixels; their squares would exceed float32 in the loss."""


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
    record: dict,
    channels: int,
    apply_exif: bool = False,
    lazily: bool = False,
    *,
    bands: tuple[int, ...] | None = None,
    nodata: float | None = None,
) -> Image.Image | LazyJpeg | np.ndarray:
    """Decodes the image of an example to `channels` bands.

    The file may come from anybody: nothing in it is run, and one that would take more memory than
    `limits.py` allows is refused before it is decoded.

    Photographs (JPEG, PNG, WebP, ..., and TIFFs that are pictures) become 8-bit grey (1), grey and
    alpha (2), RGB (3) or RGBA (4): grey is repeated, alpha is dropped without blending, as in the
    original pipeline, CMYK and palettes are converted.

    Arrays, `.npy` files and whatever has more than 8 bits are data: they keep their dtype and must
    have `channels` bands; of `.npy` they may come first. An exception is 16-bit grey where
    `channels` is 3: it is a photograph, and divided by 257.

    Args:
      record: an example of a source, of which 'image' and 'name' are used.
      channels: bands of the result.
      apply_exif: rotate and mirror the picture as its orientation demands (EXIF, or the TIFF tag).
        HEIC, whose decoder does so itself, is upright in any case.
      lazily: return a JPEG undecoded where `jpeg.py` can decode crops of it.
      bands: which bands of the file are taken, in this order, counted from 0 as NumPy does; None
        for the rules above. Of a `.npy` file the shorter of the first and last axis is the bands.
      nodata: a value that marks missing pixels. They, and pixels that are not finite, are replaced
        by the mean of the other pixels of their band in this image.

    Returns:
      A `LazyJpeg`, with `lazily`, for a JPEG that `jpeg.py` can read.
      A Pillow image of mode L or RGB where the result has 8 bits and 1 or 3 bands.
      An array [H, W, C] in all other cases.

    Raises:
      BadImage: the file is truncated, of an unknown format, too large, has other bands, or has a
        pixel that is not finite or beyond `MAX_VALUE`.
      UserError: a library that this kind of file needs is not installed.
    """
    image = record['image']
    is_plain = not apply_exif and bands is None and nodata is None
    if lazily and is_plain and isinstance(image, bytes):
        size = jpeg_size(image, channels)
        if size:
            return LazyJpeg(record, channels, size)
    try:
        picture, orientation = read_pixels(image, None if bands else channels, apply_exif)
        if isinstance(picture, Image.Image) and not bands:
            picture = _as_mode(picture, channels)
        if nodata is not None or bands or not isinstance(picture, Image.Image):
            array = _chosen_bands(as_array(_without_palette(picture)), bands)
            array = _without_missing(array, nodata)
            picture = array if bands else _fit_channels(array, channels)
        if apply_exif and orientation != 1:
            picture = upright(as_array(picture), orientation)
    except UserError as error:
        raise type(error)(f'{record["name"]}: {error}') from error
    except Exception as error:  # decoders meet broken files with every kind of exception
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # its message is a buffer's address
            reason = 'empty' if not image else 'not an image of a known format'
        raise BadImage(f'{record["name"]} cannot be read as an image: {reason}.') from error
    if isinstance(picture, Image.Image):
        return picture
    is_picture = picture.dtype == np.uint8 and picture.shape[-1] in (1, 3)
    return as_picture(picture) if is_picture else np.ascontiguousarray(picture)


def read_pixels(
    image: bytes | np.ndarray, channels: int | None, apply_exif: bool
) -> tuple[Image.Image | np.ndarray, int]:
    """Returns a Pillow image or an array [H, W, C], and the orientation, 1 to 8.

    Args:
      image: see `protocol.Example`.
      channels: the bands that are wanted; None for all that there are.
      apply_exif: whether the orientation is needed.
    """
    if isinstance(image, np.ndarray):
        return _bands_last(image, channels), 1
    if image.startswith(NPY_MAGIC):
        return _bands_last(read_npy(image), channels), 1
    if image.startswith(TIFF_MAGICS):
        return read_tiff(image, channels)
    return read_picture(image, channels, apply_exif)


def _as_mode(image: Image.Image, channels: int) -> Image.Image | np.ndarray:
    if channels not in PILLOW_MODES:
        raise BadImage(f'{len(image.getbands())} bands, where dataset.channels={channels}.')
    image = _without_palette(image)
    if channels != 4 or len(image.getbands()) != 4:  # four bands that are not RGBA stay
        mode = PILLOW_MODES[channels]
        image = image if image.mode == mode else image.convert(mode)
    image.load()
    return image if channels in (1, 3) else np.asarray(image)


def _without_palette(image: Image.Image | np.ndarray) -> Image.Image | np.ndarray:
    """Converts what Pillow's arrays would not show as colours: palettes and single bits."""
    if not isinstance(image, Image.Image) or image.mode not in ('P', 'PA', '1'):
        return image
    # RGBA first: the entries of a palette may be transparent.
    return image.convert('L' if image.mode == '1' else 'RGBA')


def _bands_last(array: np.ndarray, channels: int | None) -> np.ndarray:
    """Moves the bands of [C, H, W] to the end; adds them to [H, W]."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        return array
    first, last = array.shape[0], array.shape[-1]
    are_first = first < last if channels is None else first == channels != last
    return np.moveaxis(array, 0, -1) if are_first and (last, channels) != (1, 3) else array


def _chosen_bands(array: np.ndarray, bands: tuple[int, ...] | None) -> np.ndarray:
    if array.dtype.kind not in 'uif' or array.dtype.itemsize > 8:
        raise BadImage(f'an array of {array.dtype}; integers or floats are needed.')
    if array.ndim != 3 or 0 in array.shape:
        raise BadImage(f'an array of shape {array.shape}; [height, width, bands] is needed.')
    array = array.astype(array.dtype.newbyteorder('='), copy=False)
    if bands and not 0 <= min(bands) <= max(bands) < array.shape[-1]:
        raise BadImage(
            f'dataset.bands={bands} counts from 0, and the image has {array.shape[-1]} band(s).'
        )
    return array[..., bands] if bands else array


def _fit_channels(array: np.ndarray, channels: int) -> np.ndarray:
    if array.shape[-1] == 1 and channels == 3:
        if array.dtype == np.uint16:  # Pillow's own conversion would clip at 255
            array = np.rint(array / 257).astype(np.uint8)
        array = np.repeat(array, 3, axis=-1)
    if array.shape[-1] != channels:
        raise BadImage(
            f'shape {array.shape}, where dataset.channels={channels}: change it, or choose bands '
            'by dataset.bands.'
        )
    return array


def _without_missing(array: np.ndarray, nodata: float | None) -> np.ndarray:
    """Replaces missing pixels of [H, W, C]; raises BadImage for one that cannot be a number."""
    is_float = array.dtype.kind == 'f'
    if nodata is not None:
        with np.errstate(over='ignore'):  # a value that this dtype cannot hold occurs nowhere
            missing = array == (array.dtype.type(nodata) if is_float else nodata)
        if is_float:
            missing |= ~np.isfinite(array)
        if missing.any():
            array = _filled(array, missing)
    if is_float:
        finite = np.isfinite(array)
        if finite.all() and max(-float(array.min()), float(array.max())) < MAX_VALUE:
            return array
        where = np.argwhere(~finite | (abs(np.where(finite, array, 0).astype(float)) >= MAX_VALUE))
        row, column, band = where[0]
        value = array[row, column, band]
        raise BadImage(
            f'band {band} is {value} at row {row}, column {column}, and {len(where):,} value(s) of '
            f'the image are not finite or beyond {MAX_VALUE:g}: if that marks missing pixels, set '
            f'dataset.nodata={value} (`mae-jax prepare --nodata={value}`), else repair the image.'
        )
    return array


def _filled(array: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Replaces missing pixels by the mean of the others of their band."""
    array = array.copy()
    for band in range(array.shape[-1]):
        pixels, holes = array[..., band], missing[..., band]
        if holes.all():
            raise BadImage(f'band {band} has no pixel that is not missing (dataset.nodata).')
        mean = pixels[~holes].mean(dtype=np.float64)
        pixels[holes] = mean if array.dtype.kind == 'f' else np.rint(mean)
    return array
