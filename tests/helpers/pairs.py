"""Pictures with masks for tests, and folders of them."""

import numpy as np
from PIL import Image

from helpers.images import encode, smooth_picture
from mae_jax.data.images.masks import MaskValues

FILL = (123.675, 116.28, 103.53)
VIEWS = dict(
    channels=3,
    values=MaskValues(5),
    sides=(32, 128),
    resize_ratio=(0.5, 2.0),
    max_class_share=0.75,
    flip=True,
    fill=FILL,
)
"""Arguments of `train_pairs`, without the size of a view and what is random."""


def blocks(seed: int, width: int, height: int, classes: int = 5) -> np.ndarray:
    """Draws a mask, uint8 [height, width], of rectangles of random classes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(12):
        (top, bottom), (left, right) = np.sort(rng.integers(0, (height, width), (2, 2)).T)
        mask[top : bottom + 1, left : right + 1] = rng.integers(classes)
    return mask


def pair(seed: int, width: int, height: int, classes: int = 5) -> dict:
    """Returns an example of a source: a PNG and its mask."""
    mask = Image.fromarray(blocks(seed, width, height, classes))
    return {
        'image': encode(smooth_picture(seed, width, height), 'PNG'),
        'mask': encode(mask, 'PNG'),
        'label': -1,
        'name': f'pair/{seed}',
    }


def write_pairs(root, split: str, sizes, classes: int = 5, first: int = 0) -> None:
    """Writes images/<split>/NNN.jpg and annotations/<split>/NNN.png, of these (width, height)."""
    for kind in ('images', 'annotations'):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes, first):
        smooth_picture(number, *size).save(root / f'images/{split}/{number:03d}.jpg', quality=90)
        mask = Image.fromarray(blocks(number, *size, classes))
        mask.save(root / f'annotations/{split}/{number:03d}.png')
