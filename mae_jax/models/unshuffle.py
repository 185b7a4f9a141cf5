"""Puts visible patches into their places, with a gradient that gathers.

JAX's own gradient of a gather is a scatter: slow on accelerators, on GPUs in an order that differs
from run to run, and slower still where XLA has to fix the order. Here the inverse is known.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad
from jaxtyping import Array, ArrayLike, Float, Int

from mae_jax.models.primitives import make_primitive


@jax.custom_jvp
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
    return _place(jnp.asarray(tokens), ids_keep, ids_restore)


@unshuffle.defjvp
def _differentiate(primals, tangents):
    _, *ids = primals
    return unshuffle(*primals), _tangent_p.bind(tangents[0], *ids)


def _place(tokens: ArrayLike, ids_keep: ArrayLike, ids_restore: ArrayLike) -> Array:
    del ids_keep
    num_kept, places = tokens.shape[1], ids_restore[..., None]
    placed = jnp.take_along_axis(tokens, jnp.minimum(places, num_kept - 1), axis=1)
    hidden = jnp.zeros((), placed.dtype)  # a plain 0 would become a float64 in ONNX
    return jnp.where(places < num_kept, placed, hidden)


def _transpose(
    gradient: Any, tokens: ad.UndefinedPrimal, ids_keep: ArrayLike, ids_restore: ArrayLike
) -> tuple[Any, None, None]:
    if isinstance(gradient, ad.Zero):
        return ad.Zero(tokens.aval), None, None
    return jnp.take_along_axis(gradient, ids_keep[..., None], axis=1), None, None


_tangent_p = make_primitive('unshuffle_tangent', _place)
ad.defjvp(_tangent_p, lambda tangent, _, *ids: _tangent_p.bind(tangent, *ids), None, None)
ad.primitive_transposes[_tangent_p] = _transpose
