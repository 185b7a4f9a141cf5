"""Pillow's pictures and arrays of pixels, each as the other."""

import numpy as np
from PIL import Image


def as_picture(pixels: np.ndarray) -> Image.Image:
    """uint8 [H,W,C] -> a picture of C bands, grey where there is one."""
    return Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    )


def as_array(picture: Image.Image | np.ndarray) -> np.ndarray:
    """A picture, or an array that is one already, as [H,W,C]."""
    pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """[H,W,C] with left and right exchanged, in memory of its own.

    Band by band, because NumPy copies a reversed row of pixels three bytes at a time.
    """
    copy = np.empty_like(pixels)
    for band in range(pixels.shape[2]):
        copy[..., band] = pixels[:, ::-1, band]
    return copy
