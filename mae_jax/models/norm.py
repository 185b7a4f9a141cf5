"""Layer normalisation, whose gradient reads its inputs once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Float32

NORM_EPS = 1e-6
"""What LayerNorm adds to the variance in the original."""


def _normalised(x: ArrayLike, epsilon: float) -> tuple[Float32[Array, '...'], Array]:
    x = jnp.asarray(x, jnp.float32)
    # The one-pass variance, E[x^2] - E[x]^2, cancels where the mean is large.
    centred = x - x.mean(-1, keepdims=True)
    factor = lax.rsqrt(_mean_of_squares(centred) + epsilon)
    return centred * factor, factor


def _mean_of_squares(x: Float32[Array, '... D']) -> Float32[Array, '... 1']:
    return lax.platform_dependent(
        jnp.square(x),
        tpu=_mean_by_product,
        default=lambda squares: squares.mean(-1, keepdims=True),
    )


def _mean_by_product(x: Float32[Array, '... D']) -> Float32[Array, '... 1']:
    """Averages by products with ones: sums over lanes are slow on a TPU, which multiplies bfloat16.

    x is the sum of two such numbers, but for 2^-17 of it. XLA would take a conversion there and
    back for superfluous, and `low` for zero.
    """
    ones = jnp.ones((x.shape[-1], 8), jnp.bfloat16)
    high = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    parts = high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)
    total = sum(jnp.matmul(part, ones, preferred_element_type=jnp.float32) for part in parts)
    return total[..., :1] / x.shape[-1]


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def layer_norm(
    x: Float[ArrayLike, '... D'],
    scale: Float32[ArrayLike, ' D'],
    bias: Float32[ArrayLike, ' D'],
    epsilon: float,
    dtype: Any,
) -> Float[Array, '... D']:
    """Normalises the last axis in float32, and rounds once, to `dtype`.

    The tangent is written in terms of the normalised values, as in a derivation by hand. JAX's own
    goes through mean and variance, and its transpose sums over the last axis once more, what
    is zero.
    """
    return (_normalised(x, epsilon)[0] * scale + bias).astype(dtype)


@layer_norm.defjvp
def _differentiate(epsilon, dtype, primals, tangents):
    x, scale, bias = primals
    of_x, of_scale, of_bias = (jnp.asarray(t, jnp.float32) for t in tangents)
    normalised, factor = _normalised(x, epsilon)
    along = (of_x * normalised).mean(-1, keepdims=True)
    of_x = (of_x - of_x.mean(-1, keepdims=True) - normalised * along) * factor
    tangent = of_x * scale + normalised * of_scale + of_bias
    return (normalised * scale + bias).astype(dtype), tangent.astype(dtype)


class LayerNorm(nn.Module):
    """Layer normalisation with scale and bias, both float32; the result has `dtype`."""

    epsilon: float = NORM_EPS
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, '... D']) -> Float[Array, '... D']:
        scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
        bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
        return layer_norm(x, scale, bias, self.epsilon, self.dtype)
