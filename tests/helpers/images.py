"""Pictures for tests, and the files they are stored in."""

import io

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """Returns the bytes of a file of this kind ('JPEG', 'PNG', ...)."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_picture(seed: int, width: int, height: int) -> Image.Image:
    """Draws blurred noise, so that JPEG and bicubic have work to do as on a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
