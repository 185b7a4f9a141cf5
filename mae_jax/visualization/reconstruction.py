"""What a masked autoencoder predicts for hidden patches, beside the images it was given."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32

from mae_jax.keys import key_for
from mae_jax.models.mae import MAE
from mae_jax.models.patches import grid_size, patchify, unpatchify
from mae_jax.visualization.drawing import Columns, heat, hide, to_pixels
from mae_jax.visualization.in_batches import in_batches

ERROR_CAPTION = (
    'Every patch is predicted from others; error: root mean square of the channels, in standard '
    'deviations of the data.'
)
"""What a reader of `error_columns` has to know."""


def fill_hidden(
    images: Float32[np.ndarray, 'B H W C'],
    pixels: Float[np.ndarray, 'B N V'],
    mask: Bool[np.ndarray, 'B N'],
    patch_size: int,
) -> Float[np.ndarray, 'B H W C']:
    """Replaces the hidden patches by the prediction; an all-True mask replaces every patch.

    Args:
      images: the model's input, normalised.
      pixels: as `MAE.pixels` makes them from a prediction.
      mask: True where a patch is hidden.
      patch_size: P.
    """
    mixed = np.where(mask[..., None], pixels, patchify(images, patch_size))
    return unpatchify(mixed, patch_size, images.shape[1:3])


def reconstruction_columns(
    images: Float32[np.ndarray, 'B H W C'],
    pixels: Float[np.ndarray, 'B N V'],
    mask: Bool[np.ndarray, 'B N'],
    *,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    raw: bool = False,
) -> Columns:
    """Draws original, masked, and reconstruction: the prediction where patches are hidden.

    Args:
      images, pixels, mask, patch_size: as of `fill_hidden`.
      mean, std: as of `to_pixels`.
      raw: whether to add the prediction for every patch. That for visible patches is noise where
        the loss covers the hidden ones alone.
    """

    def draw(replaced):
        return to_pixels(fill_hidden(images, pixels, replaced, patch_size), mean, std)

    original = to_pixels(images, mean, std)
    columns = {
        'original': original,
        'masked': hide(original, mask, patch_size),
        'reconstruction': draw(mask),
    }
    return columns | {'raw prediction': draw(np.ones_like(mask))} if raw else columns


def error_columns(
    images: Float32[np.ndarray, 'B H W C'],
    filled: Float32[np.ndarray, 'B H W C'],
    error: Float32[np.ndarray, 'B H W'],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Columns, float]:
    """Draws original, reconstruction, and the root of the error in the colours of a heat map.

    Args:
      images, filled: normalised.
      error: squared, mean over channels.
      mean, std: as of `to_pixels`.

    Returns:
      The columns, and the root of the largest error, which has the lightest colour in all rows.
    """
    error = np.sqrt(error)
    top = float(error.max())
    columns = {
        'original': to_pixels(images, mean, std),
        'reconstruction': to_pixels(filled, mean, std),
        'error': heat(error, 1, top),
    }
    return columns, top


def mask_noise(
    seed: int, images: Float[np.ndarray, 'B H W C'], model: MAE
) -> Float32[np.ndarray, 'B N']:
    """Draws the noise of masks: for each image by its index, however many images there are.

    A larger mask ratio hides the same patches, and more, where they are hidden at random; the
    blocks of block-wise masking are drawn larger.
    """
    grid = grid_size(images.shape[1:3], model.patch_size)
    keys = [key_for(seed, 'visualize', index) for index in range(len(images))]
    return np.concatenate([model.masking.draw_noise(key, 1, grid) for key in keys])


def predict(
    model: MAE, params: Any, images: Float[np.ndarray, 'B H W C'], noise: Float[np.ndarray, 'B N']
) -> tuple[Float32[np.ndarray, 'B N V'], Bool[np.ndarray, 'B N']]:
    """Predicts images under the masks that follow from `noise`.

    Returns:
      The prediction as patches of pixels, and the mask, True where a patch was hidden.

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
    images: Float32[np.ndarray, 'B H W C'],
    ratios: Sequence[float],
    *,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    raw: bool = False,
) -> Columns:
    """Draws the original, then for each mask ratio the columns of `reconstruction_columns`.

    The titles name the ratio where there are several.

    Args:
      model, params: with any mask ratio; it is replaced.
      images: normalised.
      ratios: shares of the patches to hide.
      seed: of the masks.
      mean, std: as of `to_pixels`.
      raw: as of `reconstruction_columns`.
    """
    columns = {}
    for ratio in ratios:
        masked = model.clone(masking=dataclasses.replace(model.masking, ratio=ratio))
        drawn = reconstruction_columns(
            images,
            *predict(masked, params, images, mask_noise(seed, images, masked)),
            patch_size=model.patch_size,
            mean=mean,
            std=std,
            raw=raw,
        )
        if len(ratios) == 1:
            return drawn
        columns['original'] = drawn.pop('original')
        columns |= {f'{title}, {100 * ratio:g}%': column for title, column in drawn.items()}
    return columns
