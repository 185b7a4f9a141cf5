"""Provides JPEG files that take as long to decode as photographs: generated, or from a folder."""

from pathlib import Path

import numpy as np
from PIL import Image

DETAIL = 0.37
"""Exponent by which finer octaves become weaker; 500 x 375 pixels then take 104 KB."""


def link_photographs(path: Path, folder: Path, count: int) -> None:
    """Links `count` images, evenly spaced over `path/train/<class>/`, in `folder`."""
    files = sorted(file for file in path.glob('train/*/*') if not file.name.startswith('.'))
    for index in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int):
        link = folder / files[index].relative_to(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(files[index].resolve())


def make_photographs(
    folder: Path, count: int, width: int = 500, height: int = 375, seed: int = 0
) -> None:
    """Writes `train/<class>/*.jpg` whose detail decreases slowly with the octave, as film grain.

    With 500 x 375 pixels a file has about 104 KB. The images are windows of a few pictures of twice
    the width and height.
    """
    rng = np.random.default_rng(seed)
    for index in range(count):
        if index % 32 == 0:
            picture = _octaves(rng, 2 * width, 2 * height)
        left, top = (int(rng.integers(side)) for side in (width, height))
        path = folder / 'train' / f'class_{index % 4}' / f'{index:04d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        window = picture[top : top + height, left : left + width]
        Image.fromarray(window).save(path, quality=92)


def _octaves(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Adds random pictures of ever coarser grain; returns uint8 [height, width, 3]."""
    total = np.zeros((height, width, 3))
    for cell in (1, 2, 4, 8, 16, 32, 64):  # pixels
        shape = -(-height // cell), -(-width // cell)
        for channel, strength in enumerate((1, 0.35, 0.35)):  # luminance and two of chrominance
            grid = Image.fromarray(rng.normal(size=shape).astype(np.float32))
            grid = grid.resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += strength * cell**DETAIL * np.asarray(grid)
    total *= 60 / total[..., 0].std()
    grey, a, b = np.moveaxis(total, -1, 0)
    pixels = 128 + np.stack([grey + a, grey - (a + b) / 2, grey + b], axis=-1)
    return np.clip(pixels, 0, 255).astype(np.uint8)
