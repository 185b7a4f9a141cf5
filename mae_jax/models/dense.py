"""The dense layer: how a product with a weight is computed, forward and backward."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, ArrayLike, Float

PRODUCT = 'dense_product'
"""Name of a dense layer's product, by which rematerialisation policies select it."""


def _dot(a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> Array:
    """Sums over these axes in float32, whatever the operands, and rounds once to their dtype."""
    product = lax.dot_general(
        a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=jnp.float32
    )
    return product.astype(a.dtype)


@jax.custom_vjp
def matmul(x: Float[ArrayLike, '... D'], kernel: Float[ArrayLike, 'D F']) -> Float[Array, '... F']:
    """Multiplies operands of one dtype.

    The gradients are written out for the sake of CPUs. JAX's own rule computes the kernel's from a
    transposed copy of the incoming gradient, and XLA computes that copy anew from everything the
    gradient came from, through all later blocks; a transposed copy of `x` has no such dependency.
    And bfloat16 products are fast on CPUs only while their sums are float32.
    """
    return _dot(x, kernel, (x.ndim - 1,), (0,))


def _forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _backward(operands, gradient):
    x, kernel = operands
    # As matrices: XLA turns a sum over several axes into a transposed copy, and where `x` is a
    # GELU it computes the GELU again for that copy, column by column.
    rows = [array.reshape(-1, array.shape[-1]) for array in (x, gradient)]
    return _dot(gradient, kernel, (x.ndim - 1,), (1,)), _dot(*rows, (0,), (0,))


matmul.defvjp(_forward, _backward)


def _dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None):
    """Replaces `lax.dot_general` in `nn.Dense`, which always contracts the last axis of `x`."""
    return checkpoint_name(matmul(x, kernel), PRODUCT)


Dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dot_general=_dot_general)
"""Linear layer: Xavier-uniform kernel [D, F] in float32, zero bias; computes in its `dtype`."""
