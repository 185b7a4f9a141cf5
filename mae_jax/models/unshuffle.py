"""Puts visible patches into their places, with a gradient that gathers.

JAX's own gradient of a gather is a scatter: slow on accelerators, on GPUs in an order that differs
from run to run, and slower still where XLA has to fix the order. Here the inverse is known.
"""

from typing import Any

import jax.numpy as jnp
from jax.interpreters import ad
from jaxtyping import Array, ArrayLike, Float, Int

from mae_jax.models.primitives import make_primitive


def unshuffle(
    tokens: Float[ArrayLike, 'B K D'],
    ids_keep: Int[ArrayLike, 'B K'],
    ids_restore: Int[ArrayLike, 'B N'],
) -> Float[Array, 'B N D']:
    """Returns the tokens in the order of the image, and zeros where a patch is hidden.

    Args:
      tokens: of the visible patches.
      ids_keep, ids_restore: as of `Masking`.
    """
    return _unshuffle_p.bind(jnp.asarray(tokens), ids_keep, ids_restore)


def _place(tokens: ArrayLike, ids_keep: ArrayLike, ids_restore: ArrayLike) -> Array:
    del ids_keep
    num_kept, places = tokens.shape[1], ids_restore[..., None]
    placed = jnp.take_along_axis(tokens, jnp.minimum(places, num_kept - 1), axis=1)
    return jnp.where(places < num_kept, placed, 0)


def _transpose(
    gradient: Any, tokens: ad.UndefinedPrimal, ids_keep: ArrayLike, ids_restore: ArrayLike
) -> tuple[Any, None, None]:
    if isinstance(gradient, ad.Zero):
        return ad.Zero(tokens.aval), None, None
    return jnp.take_along_axis(gradient, ids_keep[..., None], axis=1), None, None


_unshuffle_p = make_primitive('unshuffle', _place)
ad.defjvp(_unshuffle_p, lambda tangent, tokens, *ids: _unshuffle_p.bind(tangent, *ids), None, None)
ad.primitive_transposes[_unshuffle_p] = _transpose
