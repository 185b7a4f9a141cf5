"""Miniatures of the sets that robustness is measured on, and a classifier to measure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from configs import finetune
from helpers.tiny_runs import PLAIN, SIZES
from mae_jax.config.model import make_classifier
from mae_jax.data.transforms.corruptions import CORRUPTIONS
from mae_jax.interop.trained import Trained, write_trained

SIDE = 8
SETS = [f'{corruption}/{severity}' for corruption in CORRUPTIONS for severity in range(1, 6)]


def noise(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Draws images of 2 x 2 colours, uint8 [count, side, side, 3]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return pixels.repeat(side // 2, axis=1).repeat(side // 2, axis=2)


def write_pictures(folder: Path, pictures: Mapping[str, np.ndarray]) -> Path:
    """Writes the images of each class, uint8 [n, H, W, 3], into its folder."""
    for name, images in pictures.items():
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / name / f'{number}.png')
    return folder


def write_images(folder: Path, classes: Sequence[str], count: int, side: int = SIDE) -> Path:
    """Writes `count` images of noise of each class."""
    images = noise(count * len(classes), side)
    return write_pictures(folder, dict(zip(classes, np.split(images, len(classes)), strict=True)))


def write_classifier(path: Path, classes: int, names: Sequence[str] = ()) -> Path:
    """Writes a classifier of one block with random weights, which sees whole images of 8 pixels."""
    config = finetune.get_config()
    changes = SIZES | PLAIN | {'image_size': (SIDE, SIDE), 'model.depth': 1, 'model.patch_size': 4}
    changes |= {'dataset.channels': 3, 'dataset.mean': (0.5,) * 3, 'dataset.std': (0.25,) * 3}
    changes |= {'dataset.eval_crop_share': 1.0, 'model.dtype': 'float32'}
    config.update_from_flattened_dict(changes)
    module, images = make_classifier(config, classes), np.zeros((1, SIDE, SIDE, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)['params']
    rng = np.random.default_rng(1)
    # Without large biases and positions, predictions differ between images.
    params = jax.tree.map(
        lambda x: rng.normal(0, 1 if x.ndim == 2 else 0.1, x.shape).astype(np.float32), shapes
    )
    write_trained(path, Trained(params, {}, None, config, tuple(names)))
    return path
