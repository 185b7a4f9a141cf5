"""What a model of pixels predicts, beside what it was given."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mae_jax.keys import key_for
from mae_jax.models.mae import MAE
from mae_jax.models.patches import grid_size, patchify, unpatchify
from mae_jax.visualization.drawing import hide, to_pixels

BATCH = 16
"""Images that go through a model at once."""
Columns = dict[str, np.ndarray]
"""Title -> uint8 [B,H,W,3], from left to right."""


def reconstruct(
    images: np.ndarray, pixels: np.ndarray, mask: np.ndarray, patch_size: int
) -> np.ndarray:
    """Hidden patches as predicted, visible ones as they are; an all-True mask shows all predicted.

    Args:
      images: float32 [B,H,W,C], as the model was given them.
      pixels: float32 [B,N,P*P*C], as `MAE.pixels` makes them of a prediction.
      mask: bool [B,N], True where hidden.
      patch_size: P.

    Returns:
      float32 [B,H,W,C], normalised as `images` are.
    """
    mixed = np.where(mask[..., None], pixels, patchify(images, patch_size))
    return unpatchify(mixed, patch_size, images.shape[1:3])


def reconstruction_columns(
    images: np.ndarray,
    pixels: np.ndarray,
    mask: np.ndarray,
    *,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Columns:
    """Original | masked | reconstruction | reconstruction + visible.

    Args:
      images, pixels, mask, patch_size: see `reconstruct`.
      mean, std: of `normalize`, to be undone by `to_pixels`.
    """

    def filled(shown: np.ndarray) -> np.ndarray:
        return to_pixels(reconstruct(images, pixels, shown, patch_size), mean, std)

    original = to_pixels(images, mean, std)
    return {
        'original': original,
        'masked': hide(original, mask, patch_size),
        'reconstruction': filled(np.ones_like(mask)),
        'reconstruction + visible': filled(mask),
    }


def mask_noise(seed: int, images: np.ndarray, model: MAE) -> np.ndarray:
    """Float32 [B,N] for `model`: a draw for each place, however many images there are.

    A larger mask ratio hides the same patches, and more, where they are hidden at random; blocks
    it draws larger.
    """
    grid = grid_size(images.shape[1:3], model.patch_size)
    keys = [key_for(seed, 'visualize', place) for place in range(len(images))]
    return np.concatenate([model.masking.draw_noise(key, 1, grid) for key in keys])


def predict(
    model: MAE, params: Any, images: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the model makes of images under these masks.

    Returns:
      The prediction as pixels, float32 [B,N,P*P*C], and the mask, bool [B,N].

    Raises:
      UserError: the model's ratio hides nothing, or everything; or it predicts no pixels.
    """

    @jax.jit
    def run(params, images, noise):
        output = model.apply({'params': params}, images, noise=noise)
        pixels = model.apply({'params': params}, output.prediction, images, method='pixels')
        return pixels, output.mask

    return in_batches(run, params, images, noise)


def sweep_columns(
    model: MAE,
    params: Any,
    images: np.ndarray,
    ratios: Sequence[float],
    *,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Columns:
    """Original, then for each mask ratio what was left of it, and what the model made of that.

    A single ratio has the four columns of `reconstruction_columns`. The seed is of the masks.
    """
    columns = {}
    for ratio in ratios:
        masked = model.clone(masking=dataclasses.replace(model.masking, ratio=ratio))
        found = reconstruction_columns(
            images,
            *predict(masked, params, images, mask_noise(seed, images, masked)),
            patch_size=model.patch_size,
            mean=mean,
            std=std,
        )
        if len(ratios) == 1:
            return found
        columns['original'] = found['original']
        for title in ('masked', 'reconstruction + visible'):
            columns[f'{title}, {100 * ratio:g}%'] = found[title]
    return columns


def in_batches(run: Callable, params: Any, *arrays: np.ndarray) -> Any:
    """`run(params, *arrays)`, `BATCH` rows at a time so that memory stays bounded; numpy."""
    starts = range(0, len(arrays[0]), BATCH)
    parts = [run(params, *(array[i : i + BATCH] for array in arrays)) for i in starts]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
