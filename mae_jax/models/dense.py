"""The dense layer: how a product with a weight is computed, forward and backward."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad
from jaxtyping import Array, ArrayLike, Float

from mae_jax.models.primitives import make_primitive

PRODUCT = 'dense_product'
"""Name of a dense layer's product, by which rematerialisation policies select it."""


def _dot(a: ArrayLike, b: ArrayLike, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> Array:
    """Sums over these axes in float32, whatever the operands, and rounds once to their dtype."""
    product = lax.dot_general(
        a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=jnp.float32
    )
    return product.astype(a.dtype)


def _product(x: ArrayLike, kernel: ArrayLike) -> Array:
    return _dot(x, kernel, (x.ndim - 1,), (0,))


@jax.custom_jvp
def matmul(x: Float[ArrayLike, '... D'], kernel: Float[ArrayLike, 'D F']) -> Float[Array, '... F']:
    """Multiplies operands of one dtype.

    The gradients are written out for the sake of CPUs. JAX's own rule computes the kernel's from a
    transposed copy of the incoming gradient, and XLA computes that copy anew from everything the
    gradient came from, through all later blocks; a transposed copy of `x` has no such dependency.
    And bfloat16 products are fast on CPUs only while their sums are float32.
    """
    return _product(x, kernel)


# The tangent is a product too, and its transpose the gradient: a primitive of its own, since
# `jax.custom_vjp` would rule out forward mode, and `jax.custom_jvp` alone leaves the transpose to
# JAX. After differentiation in reverse nothing of it is left.
_tangent_p = make_primitive('dense_tangent', _product)


def _gradient_of_x(gradient: ArrayLike, x: object, kernel: ArrayLike) -> Array:
    return _dot(gradient, kernel, (gradient.ndim - 1,), (1,))


def _gradient_of_kernel(gradient: ArrayLike, x: ArrayLike, kernel: object) -> Array:
    # As matrices: XLA turns a sum over several axes into a transposed copy, and where `x` is a
    # GELU it computes the GELU again for that copy, column by column.
    rows = [array.reshape(-1, array.shape[-1]) for array in (x, gradient)]
    return _dot(*rows, (0,), (0,))


ad.defbilinear(_tangent_p, _gradient_of_x, _gradient_of_kernel)


@partial(matmul.defjvp, symbolic_zeros=True)
def _differentiate(primals, tangents):
    x, kernel = primals
    pairs = (x, tangents[1]), (tangents[0], kernel)  # the last is the first to be transposed
    terms = [_tangent_p.bind(*p) for p in pairs if not any(isinstance(a, SymbolicZero) for a in p)]
    return matmul(x, kernel), reduce(jnp.add, terms)


def _dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None):
    """Replaces `lax.dot_general` in `nn.Dense`, which always contracts the last axis of `x`."""
    return checkpoint_name(matmul(x, kernel), PRODUCT)


Dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dot_general=_dot_general)
"""Linear layer: Xavier-uniform kernel [D, F] in float32, zero bias; computes in its `dtype`."""
