"""Attention of the cls token over the patches, as heat maps."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32

from mae_jax.errors import UserError
from mae_jax.models.vit import Encoder
from mae_jax.visualization.drawing import Columns, heat
from mae_jax.visualization.in_batches import in_batches


def cls_attention(
    encoder: Encoder, params: Any, images: Float[np.ndarray, 'B H W C'], block: int = -1
) -> Float32[np.ndarray, 'B heads rows columns']:
    """Computes the attention of the cls token to each patch, in one block.

    Args:
      encoder: any; it is run without scan, and with plain attention.
      params: of the encoder.
      images: normalised.
      block: 0 the first, -1 the last.

    Returns:
      A map over the patches for each head. It sums to less than 1: the rest is the cls token's
      attention to itself.

    Raises:
      UserError: the block does not exist, or the encoder has no cls token.
    """
    if not encoder.options.cls_token:
        raise UserError(
            'This encoder has no cls token (model.cls_token=False), whose attention it is.'
        )
    if not -encoder.depth <= block < encoder.depth:
        raise UserError(
            f'--block={block} does not exist: this encoder has blocks 0 to {encoder.depth - 1}.'
        )
    name = f'block_{range(encoder.depth)[block]}'
    # Neither scan, nor remat, nor another implementation of attention returns the weights.
    encoder = encoder.clone(scan=False, remat='none', attention='plain')
    rows = images.shape[1] // encoder.patch_size

    @jax.jit
    def run(params, images):
        _, variables = encoder.apply({'params': params}, images, mutable='intermediates')
        (weights,) = variables['intermediates']['blocks'][name]['attention']['weights']
        return weights[:, :, 0, 1:].reshape(len(images), encoder.heads, rows, -1)

    return in_batches(run, params, images)


def attention_columns(
    encoder: Encoder, params: Any, images: Float[np.ndarray, 'B H W C'], block: int = -1
) -> Columns:
    """Draws `cls_attention` as heat maps: the mean of all heads, then each head."""
    weights = cls_attention(encoder, params, images, block)
    maps = {'mean of all heads': weights.mean(axis=1)}
    maps |= {f'head {head}': weights[:, head] for head in range(encoder.heads)}
    return {title: heat(values, encoder.patch_size) for title, values in maps.items()}
