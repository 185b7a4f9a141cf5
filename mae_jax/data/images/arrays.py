"""Conversions between Pillow images and arrays of pixels."""

import numpy as np
from PIL import Image


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Converts uint8 [H, W, C], C from 1 to 4, to a Pillow image of C bands; grey where C is 1."""
    return Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    )


def as_array(picture: Image.Image | np.ndarray) -> np.ndarray:
    """Converts a Pillow image, or an array [H, W] or [H, W, C], to an array [H, W, C]."""
    pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """Returns a contiguous copy of [H, W, C] with left and right exchanged, of the same dtype."""
    copy = np.empty_like(pixels)
    # Band by band: NumPy copies a reversed row of RGB pixels three bytes at a time.
    for band in range(pixels.shape[2]):
        copy[..., band] = pixels[:, ::-1, band]
    return copy


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors [H, W, C] as an orientation demands: 1 to 8, as EXIF and TIFF count."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
