import io

import numpy as np
import pytest
from PIL import Image


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_picture(seed: int, width: int, height: int) -> Image.Image:
    """Something like a photograph: blurred noise, so that JPEG and bicubic have work to do."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photo_folder(tmp_path):
    """A function that writes `count` JPEGs of assorted sizes to a flat folder."""

    def write(count: int, name: str = 'photos'):
        root = tmp_path / name
        root.mkdir()
        for i in range(count):
            picture = smooth_picture(i, 40 + 3 * (i % 7), 30 + 5 * (i % 5))
            picture.save(root / f'{i:04d}.jpg', quality=90)
        return root

    return write
