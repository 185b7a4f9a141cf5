"""TIFF files that hold data rather than photographs: deep, of many bands, or a page a band."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from mae_jax.data.images.limits import check_series, open_picture
from mae_jax.errors import UserError

BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 258, 277  # tags
VARIANTS = (
    *('lsm', 'mmstack', 'ome', 'imagej', 'ndtiff', 'fluoview', 'stk', 'sis', 'svs', 'scn', 'qpi'),
    *('ndpi', 'bif', 'avs', 'eer', 'philips', 'scanimage', 'nih', 'mdgel'),
)
"""Formats, mostly of microscopes, that tifffile up to 2026.3 recognises by a file's metadata."""
PLAIN = ('shaped', 'uniform', 'generic')
"""The series of tifffile that are made of the pages of the file itself."""


def read_tiff_data(data: bytes, channels: int) -> np.ndarray | None:
    """Reads a TIFF that holds data; returns None for a photograph, which Pillow decodes correctly.

    Data is deeper than 8 bits, has bands for which Pillow has no mode, or a page for each band.
    Of several deep bands Pillow would keep the upper 8 bits, and it would widen signed ones.

    Args:
      data: the content of a TIFF file.
      channels: the bands that the image should have.

    Returns:
      [H, W], [H, W, C] or [C, H, W] of the dtype of the file.

    Raises:
      UserError: tifffile is needed and not installed.
      Exception: of any kind, where the file is damaged or exceeds `limits.py`.
    """
    try:
        image = open_picture(data, io.BytesIO(data))
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
        bands = image.tag_v2.get(SAMPLES_PER_PIXEL, 1)
        if bands > 1 or channels == 1 or image.n_frames != channels:
            if max(bits) <= 8:
                return None
            if bands == 1 and (image.mode.startswith('I;16') or (image.mode, *bits) == ('F', 32)):
                return np.asarray(image)
    except Image.UnidentifiedImageError:
        pass
    try:
        tiff_file = _plain_tiff_file()
    except ImportError as error:
        raise UserError(
            'reading a TIFF of several deep bands needs `pip install tifffile`.'
        ) from error
    with tiff_file(io.BytesIO(data)) as tiff:
        series = tiff.series[0]
        check_series(data, series)
        return series.asarray(maxworkers=1)


@functools.cache
def _plain_tiff_file() -> Any:
    """Returns a `tifffile.TiffFile` that recognises no variant of TIFF.

    The metadata of a variant can claim a hundred million pages or name other files.
    """
    import tifffile

    variants = {*VARIANTS, *getattr(tifffile.TIFF, 'SERIES', ())}.difference(PLAIN)
    flags = {f'is_{variant}': False for variant in variants}
    return type('PlainTiffFile', (tifffile.TiffFile,), flags)
