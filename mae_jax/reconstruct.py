"""What a model of pixels predicts, beside what it was given."""

from collections.abc import Sequence

import numpy as np

from mae_jax.patches import patchify, unpatchify
from mae_jax.pictures import hide, to_pixels
from mae_jax.pretext.targets import patch_statistics


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
) -> dict[str, np.ndarray]:
    """Title -> uint8 [B,H,W,3] for each column of a picture, from left to right.

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
