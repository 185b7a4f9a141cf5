"""Masked | reconstructed | original, as a picture."""

from collections.abc import Sequence

import numpy as np

from mae_jax.patches import patchify, unpatchify
from mae_jax.pretext.targets import patch_statistics

HIDDEN_GREY = 128
MARGIN = 2
MIN_SIDE = 64
"""Smaller images are enlarged to at least so many pixels a side."""


def reconstruct(
    images: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray,
    *,
    patch_size: int,
    normalized_target: bool,
) -> np.ndarray:
    """Visible patches as they are, hidden ones as predicted.

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


def picture(
    images: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray,
    *,
    patch_size: int,
    normalized_target: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> np.ndarray:
    """One row an image: masked | reconstructed | original, uint8 [height, width, 3].

    Args:
      images, prediction, mask, patch_size, normalized_target: see `reconstruct`.
      mean, std: of `normalize`, to be undone; pixels then lie in [0, 1]. One channel is shown
        as grey, of more than three the first three.
    """

    def visible(normalised: np.ndarray) -> np.ndarray:
        shown = (normalised * np.asarray(std) + np.asarray(mean)) * 255.0
        shown = np.clip(np.rint(shown), 0, 255).astype(np.uint8)
        return shown[..., :3] if shown.shape[-1] >= 3 else shown[..., :1].repeat(3, axis=-1)

    original = visible(images)
    filled = reconstruct(
        images, prediction, mask, patch_size=patch_size, normalized_target=normalized_target
    )
    ones = np.ones((*mask.shape, patch_size**2), bool)
    hidden = unpatchify(ones & mask[..., None], patch_size, images.shape[1:3])
    masked = np.where(hidden, np.uint8(HIDDEN_GREY), original)
    return _grid([masked, visible(filled), original])


def _grid(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns of uint8 [B,H,W,3] side by side with white margins, small images enlarged."""
    factor = -(-MIN_SIDE // min(columns[0].shape[1:3]))
    cells = [
        np.pad(
            column.repeat(factor, axis=1).repeat(factor, axis=2),
            ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)),
            constant_values=255,
        )
        for column in columns
    ]
    rows = np.concatenate(cells, axis=2)
    return rows.reshape(-1, *rows.shape[2:])
