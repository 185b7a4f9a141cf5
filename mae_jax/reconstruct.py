"""What a model of pixels predicts, beside what it was given."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mae_jax.keys import key_for
from mae_jax.models.mae import MAE
from mae_jax.patches import patchify, unpatchify
from mae_jax.pictures import hide, to_pixels
from mae_jax.pretext.masking import draw_noise
from mae_jax.pretext.targets import patch_statistics

BATCH = 16
"""Images that go through a model at once."""
Columns = dict[str, np.ndarray]
"""Title -> uint8 [B,H,W,3], from left to right."""


def reconstruct(
    images: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray,
    *,
    patch_size: int,
    normalized_target: bool,
) -> np.ndarray:
    """Hidden patches as predicted, visible ones as they are; an all-True mask shows all predicted.

    A model of normalised pixels predicts each patch up to its mean and standard deviation; those
    of the original patch are put back, without which its pictures would look like noise.

    Args:
      images: float32 [B,H,W,C], as the model was given them.
      prediction: float32 [B,N,P*P*C].
      mask: bool [B,N], True where hidden.
      patch_size: P.
      normalized_target: whether the target was `normalized_pixel`.

    Returns:
      float32 [B,H,W,C], normalised as `images` are.
    """
    patches = patchify(images, patch_size)
    if normalized_target:
        mean, std = (np.asarray(x) for x in patch_statistics(patches))
        prediction = prediction * std + mean
    mixed = np.where(mask[..., None], prediction, patches)
    return unpatchify(mixed, patch_size, images.shape[1:3])


def reconstruction_columns(
    images: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray,
    *,
    patch_size: int,
    normalized_target: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> Columns:
    """Original | masked | reconstruction | reconstruction + visible.

    Args:
      images, prediction, mask, patch_size, normalized_target: see `reconstruct`.
      mean, std: of `normalize`, to be undone by `to_pixels`.
    """

    def filled(shown: np.ndarray) -> np.ndarray:
        options = dict(patch_size=patch_size, normalized_target=normalized_target)
        return to_pixels(reconstruct(images, prediction, shown, **options), mean, std)

    original = to_pixels(images, mean, std)
    return {
        'original': original,
        'masked': hide(original, mask, patch_size),
        'reconstruction': filled(np.ones_like(mask)),
        'reconstruction + visible': filled(mask),
    }


def mask_noise(seed: int, images: int, num_patches: int, strategy: str = 'random') -> np.ndarray:
    """Float32 [B,N] for `MAE`: a draw for each place, however many images there are.

    The same noise at a larger mask ratio hides the same patches, and more.
    """
    keys = [key_for(seed, 'visualize', place) for place in range(images)]
    return np.concatenate([draw_noise(key, 1, num_patches, strategy) for key in keys])


def predict(
    model: MAE, params: Any, images: np.ndarray, noise: np.ndarray, mask_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """What the model makes of images of which `mask_ratio` is hidden.

    Returns:
      prediction float32 [B,N,P*P*C], in the space of the target, and mask bool [B,N].

    Raises:
      UserError: the ratio hides nothing, or everything.
    """
    model = model.clone(mask_ratio=mask_ratio)

    @jax.jit
    def run(params, images, noise):
        output = model.apply({'params': params}, images, noise=noise)
        return output.prediction, output.mask

    return in_batches(run, params, images, noise)


def sweep_columns(
    model: MAE,
    params: Any,
    images: np.ndarray,
    noise: np.ndarray,
    ratios: Sequence[float],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Columns:
    """Original, then for each mask ratio what was left of it, and what the model made of that.

    A single ratio has the four columns of `reconstruction_columns`.
    """
    columns = {}
    for ratio in ratios:
        found = reconstruction_columns(
            images,
            *predict(model, params, images, noise, ratio),
            patch_size=model.patch_size,
            normalized_target=model.target == 'normalized_pixel',
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
