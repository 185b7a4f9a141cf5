"""TIFF files: pictures, which Pillow decodes, and data, which tifffile decodes.

The tags of the file decide which it is.

Of a file of several pages the first is read; overviews, masks and further pages of a document are
not. Pages are bands only where the file has as many grey pages of one size as bands are wanted.
"""

import functools
import io
import struct
from typing import Any

import numpy as np
from PIL import Image

from mae_jax.data.images.limits import check_numbers, check_pages, open_picture
from mae_jax.errors import UserError

MINISWHITE, MINISBLACK, RGB, PALETTE = 0, 1, 2, 3
COLOURS = {MINISWHITE: 1, MINISBLACK: 1, RGB: 3, PALETTE: 1, 5: 4, 6: 3, 8: 3}
"""Samples of a pixel by photometric interpretation, without extra samples; 5, 6 and 8 are CMYK,
YCbCr and CIELab."""
ALPHA = (1, 2)  # values of EXTRA_SAMPLES: premultiplied alpha, and alpha
ORIENTATION, EXTRA_SAMPLES = 274, 338  # tags
UNSIGNED, CONTIGUOUS = 1, 1  # values of the tags sample format and planar configuration
NO_FULL_PAGE = 0b111
"""Bits of the subfile type: a reduced image, a page of a document, a mask."""
VARIANTS = (
    *('lsm', 'mmstack', 'ome', 'imagej', 'ndtiff', 'fluoview', 'stk', 'sis', 'svs', 'scn', 'qpi'),
    *('ndpi', 'bif', 'avs', 'eer', 'philips', 'scanimage', 'nih', 'mdgel'),
)
"""Formats, mostly of microscopes, that tifffile up to 2026.3 recognises by a file's metadata."""
PLAIN = ('shaped', 'uniform', 'generic')
"""The series of tifffile that are made of the pages of the file itself."""


def read_tiff(data: bytes, channels: int | None) -> tuple[Image.Image | np.ndarray, int]:
    """Reads the first page of a TIFF, not turned by its orientation.

    Pictures have at most 8 bits, and at most one sample in addition to those of their colours. All
    else is data. A sample is returned as it is stored: one that is not tagged as alpha does not get
    lost, and premultiplied alpha divides nothing. An exception is MinIsWhite, which is inverted.

    Args:
      data: the content of a TIFF file.
      channels: the bands that the image should have; None for all that there are.

    Returns:
      (a Pillow image, or an array [H, W, C] of the dtype of the file; its orientation, 1 to 8)

    Raises:
      UserError: tifffile needs a package that is not installed.
      Exception: of any kind, where the file is damaged or exceeds `limits.py`.
    """
    check_pages(data)
    with _plain_tiff_file()(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        orientation = _tag(page, ORIENTATION, 1)
        if stack := _stacked_pages(tiff, page, channels):
            return _read_numbers(data, stack, stack.pages), orientation
        try:
            if _is_picture(page, channels):
                return open_picture(_retagged(data, tiff)), orientation
            if page.samplesperpixel == 1 and page.photometric in (MINISWHITE, MINISBLACK):
                picture = open_picture(_retagged(data, tiff))
                # Pillow widens other numbers; it knows more kinds of compression than tifffile.
                if picture.mode.startswith('I;16') or (picture.mode, *_bits(page)) == ('F', 32):
                    return _upper_white(np.asarray(picture), page)[..., None], orientation
        except Image.UnidentifiedImageError:
            pass
        array = _read_numbers(data, page, [page])
        if page.photometric == PALETTE:
            array = (page.colormap[:, array[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 0)
        return _wanted_samples(_upper_white(array, page), page, channels), orientation


def orientation(data: bytes) -> int:
    """Returns the orientation of a TIFF's first page, 1 to 8, as EXIF counts them."""
    with _plain_tiff_file()(io.BytesIO(data)) as tiff:
        return _tag(tiff.pages[0], ORIENTATION, 1)


def _stacked_pages(tiff: Any, page: Any, channels: int | None) -> Any:
    """Returns the series of a file that has a page for each band; None for all other files.

    Grey pages of 8 bits could as well be a scanned document; where three are wanted they are bands
    only if the metadata of tifffile or ImageJ describes one array of three.
    """
    if page.samplesperpixel != 1 or page.photometric != MINISBLACK or min(_bits(page)) < 8:
        return None
    if channels == 1 or len(tiff.pages) < 2 and not page.is_shaped:
        return None
    series = tiff.series[0]
    if len(series.shape) != 3 or series.shape[1:] != page.shape or series.axes.endswith('S'):
        return None
    if series.shape[0] != (channels or series.shape[0]):
        return None
    if any(other.subfiletype & NO_FULL_PAGE for other in tiff.pages):
        return None
    is_described = page.is_shaped or page.is_imagej
    return series if channels != 3 or max(_bits(page)) > 8 or is_described else None


def _is_picture(page: Any, channels: int | None) -> bool:
    if max(_bits(page)) > 8 or page.sampleformat != UNSIGNED:
        return False
    extra = page.samplesperpixel - COLOURS.get(page.photometric, 0)
    if page.photometric == RGB:
        return extra in (0, 1)
    if page.photometric in (MINISWHITE, MINISBLACK):  # Pillow loses the second of two planes
        return extra == 0 or extra == 1 and page.planarconfig == CONTIGUOUS
    return extra == 0 or extra > 0 and channels in (1, 3)


def _retagged(data: bytes, tiff: Any) -> bytes:
    """Returns the file with other tags, for Pillow to return the samples as they are stored.

    Pillow turns a TIFF by its orientation, replaces a fourth sample by 255 unless it is tagged as
    alpha, and divides colours by premultiplied alpha.
    """
    page = tiff.pages[0]
    wanted = {ORIENTATION: 1}
    if page.photometric in (MINISBLACK, RGB) and len(page.extrasamples) == 1:
        wanted[EXTRA_SAMPLES] = 2
    for code, value in wanted.items():
        tag = page.tags.get(code)
        if tag is not None and (tag.dtype, tag.count) == (3, 1) and tag.value != value:
            place = slice(tag.valueoffset, tag.valueoffset + 2)
            data = bytearray(data)
            data[place] = struct.pack(f'{tiff.byteorder}H', value)
    return bytes(data)


def _read_numbers(data: bytes, source: Any, pages: list) -> np.ndarray:
    """Decodes a page or a series of pages with tifffile, to [H, W, C]."""
    check_numbers(data, source, pages)
    try:
        array = source.asarray(maxworkers=1)
    except (ValueError, NotImplementedError, ImportError) as error:
        if 'imagecodecs' in str(error):
            raise UserError(
                f'{_describe(pages[0])}: to read it, `pip install imagecodecs`.'
            ) from error
        raise
    if array.ndim == 2:
        return array[..., None]
    bands_first = source is not pages[0] or source.axes.startswith('S')
    return np.moveaxis(array, 0, -1) if bands_first else array


def _wanted_samples(array: np.ndarray, page: Any, channels: int | None) -> np.ndarray:
    """Leaves out the samples that are neither colours nor, where it is wanted, alpha."""
    samples, colours = array.shape[-1], COLOURS.get(page.photometric, 0)
    if channels is None or channels >= samples or not colours:
        return array
    has_alpha = page.extrasamples[:1] and page.extrasamples[0] in ALPHA
    if channels == colours + 1 and has_alpha:
        return array[..., :channels]
    if page.photometric == RGB and channels == 3 or has_alpha and channels in (colours, 3):
        return array[..., :colours]
    return array


def _upper_white(array: np.ndarray, page: Any) -> np.ndarray:
    """Inverts unsigned integers of which 0 is white."""
    if page.photometric != MINISWHITE or array.dtype.kind != 'u':
        return array
    return array.dtype.type(2 ** max(_bits(page)) - 1) - array


def _bits(page: Any) -> tuple[int, ...]:
    bits = page.bitspersample
    return bits if isinstance(bits, tuple) else (bits,)


def _tag(page: Any, code: int, default: int) -> int:
    tag = page.tags.get(code)
    return tag.value if tag is not None and tag.value in range(1, 9) else default


def _describe(page: Any) -> str:
    method = getattr(page.compression, 'name', page.compression)
    packed = f'samples of {max(_bits(page))} bits, ' if max(_bits(page)) % 8 else ''
    return f'a TIFF of {packed}compression {method}'


@functools.cache
def _plain_tiff_file() -> Any:
    """Returns a `tifffile.TiffFile` that recognises no variant of TIFF.

    The metadata of a variant can claim a hundred million pages or name other files.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UserError('reading a TIFF needs `pip install tifffile`.') from error
    variants = {*VARIANTS, *getattr(tifffile.TIFF, 'SERIES', ())}.difference(PLAIN)
    flags = {f'is_{variant}': False for variant in variants}
    return type('PlainTiffFile', (tifffile.TiffFile,), flags)
