"""What an autoencoder predicts under given masks, and how far off it is: `mae_jax.reconstruct`."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Float32, Shaped

from mae_jax.errors import UserError
from mae_jax.keys import key_for
from mae_jax.models.mae import MAE
from mae_jax.models.patches import grid_size, patchify, unpatchify
from mae_jax.visualization.reconstruction import fill_hidden, mask_noise, predict


class Reconstruction(NamedTuple):
    """Images of which hidden patches are replaced by a model's prediction."""

    reconstruction: Float32[np.ndarray, 'B H W C']
    """Normalised, as the images: the prediction where hidden, the image elsewhere."""
    mask: Bool[np.ndarray, 'B H W']
    """True where a pixel was hidden: whole patches."""
    error: Float32[np.ndarray, 'B H W']
    """Squared difference of each pixel from the image, mean over channels; 0 where visible."""


def reconstruct(
    model: MAE,
    params: Any,
    images: Float[ArrayLike, 'B H W C'],
    mask: Shaped[ArrayLike, '...'] | None = None,
    *,
    masks: int | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Hides patches of images, and replaces them by what the model predicts.

        model, params = mae_jax.load(path)
        images = mae_jax.load_images(path, ['a.jpg', 'b.jpg'])
        filled = mae_jax.reconstruct(model, params, images, painted).reconstruction  # inpainting
        errors = mae_jax.reconstruct(model, params, images, masks=4).error  # anomalies

    With `masks`, the patches of an image are divided at random into as many groups of one size
    (or of two that differ by one), and each group is predicted from all others: no pixel of the
    reconstruction has been seen by the prediction of it. Models of normalised pixels predict a
    patch up to its mean and deviation, which are the original's: there the error shows structure,
    and neither brightness nor contrast.

    Args:
      model, params: an autoencoder, as `load` returns it.
      images: normalised, as `load_images` returns them.
      mask: bool, True where hidden: pixels [B, H, W] or patches [B, N], or B = 1 for all images. A
        patch is hidden if one of its pixels is. Images may differ in the number of hidden patches;
        one that has none comes back as it is. None draws the masks that the model was trained with.
      masks: number of complementary masks, instead of `mask`; each hides 1 / `masks` of an image.
      seed: of masks that are drawn, for each image by its index.

    Raises:
      UserError: the model has no decoder or predicts no pixels, the images have another size than
        it takes, or the mask does not fit them or leaves nothing visible.
    """
    if not isinstance(model, MAE):
        raise UserError(
            f'reconstruct needs an autoencoder, and this is a {type(model).__name__}: load the '
            'pretraining run it came from.'
        )
    if mask is not None and masks is not None:
        raise UserError('reconstruct takes mask or masks, not both.')
    if not 0 <= seed < 2**32:
        raise UserError(f'seed={seed} must be from 0 to {2**32 - 1}.')
    images = np.asarray(images, np.float32)
    patch_size = model.patch_size
    patches = _num_patches(images, patch_size, params)
    if masks is not None:
        hidden = complementary_masks(len(images), patches, masks, seed)
    elif mask is not None:
        hidden = _of_patches(np.asarray(mask), images, patch_size)[None]
    else:
        hidden = np.asarray(model.masking.mask(mask_noise(seed, images, model)).mask)[None]
    rows = np.tile(images, (len(hidden), 1, 1, 1))
    pixels = predict_hidden(model, params, rows, hidden.reshape(-1, patches))
    pixels = pixels.reshape(*hidden.shape, -1)
    pixels = np.where(hidden[..., None], pixels, 0).sum(axis=0)  # one at most is hidden
    filled = fill_hidden(images, pixels, hidden.any(axis=0), patch_size)
    shown = np.repeat(hidden.any(axis=0)[..., None], patch_size**2, axis=-1)
    return Reconstruction(
        filled,
        unpatchify(shown, patch_size, images.shape[1:3])[..., 0],
        np.square(filled - images).mean(axis=-1),
    )


def predict_hidden(
    model: MAE, params: Any, images: Float32[np.ndarray, 'B H W C'], mask: Bool[np.ndarray, 'B N']
) -> Float32[np.ndarray, 'B N V']:
    """Predicts images of which each has its own mask, and its own number of visible patches.

    Those with as many visible patches are predicted together: their shapes are the same.

    Returns:
      The prediction as patches of pixels; those of the image itself where nothing is hidden.

    Raises:
      UserError: a mask leaves nothing visible, or the model predicts no pixels.
    """
    counts, patches = mask.sum(axis=1), mask.shape[1]
    if counts.max(initial=0) == patches:
        raise UserError(
            f'The mask of image {counts.argmax()} (counted from 0) hides all of its {patches} '
            'patches: leave one visible, or more.'
        )
    pixels = np.array(patchify(images, model.patch_size))
    for count in np.unique(counts[counts > 0]).tolist():
        masking = dataclasses.replace(model.masking, ratio=count / patches)
        (rows,) = np.nonzero(counts == count)
        noise = mask[rows].astype(np.float32)  # the smallest is kept
        pixels[rows], _ = predict(model.clone(masking=masking), params, images[rows], noise)
    return pixels


def complementary_masks(
    images: int, patches: int, masks: int, seed: int
) -> Bool[np.ndarray, '{masks} {images} {patches}']:
    """Draws masks of which exactly one hides each patch.

    Raises:
      UserError: there are fewer than two, or more than patches.
    """
    if not 2 <= masks <= patches:
        raise UserError(
            f'masks={masks} must be from 2 to {patches}, the number of patches: one mask alone '
            'would hide all of them.'
        )
    keys = [key_for(seed, 'visualize', index) for index in range(images)]
    noise = np.stack([jax.random.uniform(key, (patches,)) for key in keys])
    places = noise.argsort(axis=1, kind='stable').argsort(axis=1)
    return places * masks // patches == np.arange(masks)[:, None, None]


def _num_patches(images: Float32[np.ndarray, 'B H W C'], patch_size: int, params: Any) -> int:
    """Returns the patches of an image; raises a UserError where the model takes others."""
    rows, columns = grid_size(images.shape[1:3], patch_size)
    patches = params['encoder']['pos_embed'].shape[1] - 1
    channels = params['encoder']['patch_embed']['kernel'].shape[0] // patch_size**2
    if (rows * columns, images.shape[3]) != (patches, channels):
        raise UserError(
            f'Images of {images.shape[1]} x {images.shape[2]} pixels and {images.shape[3]} '
            f'channel(s) are {rows * columns} patches, and this model takes {patches} of '
            f'{channels} channel(s): read them by mae_jax.load_images.'
        )
    return patches


def _of_patches(
    mask: np.ndarray, images: Float32[np.ndarray, 'B H W C'], patch_size: int
) -> Bool[np.ndarray, 'B N']:
    """Converts a mask of pixels or patches, for one or all images, to one of patches for each."""
    batch, height, width, _ = images.shape
    rows, columns = grid_size((height, width), patch_size)
    if mask.dtype != bool:
        raise UserError(
            f'mask is {mask.dtype}, and must be bool, True where hidden: give mask != 0.'
        )
    shape = mask.shape
    if mask.ndim == 3 and shape[1:] == (height, width):
        mask = patchify(mask[..., None], patch_size).any(axis=-1)
    if mask.ndim != 2 or mask.shape[0] not in (1, batch) or mask.shape[1] != rows * columns:
        raise UserError(
            f'mask has shape {shape}, and these images take [{batch}, {height}, {width}] for '
            f'pixels or [{batch}, {rows * columns}] for patches (or 1 in place of {batch}).'
        )
    return np.broadcast_to(mask, (batch, rows * columns))
