"""The dense layer: how a product with a weight is computed, forward and backward."""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.models.platform import platform
from mae_jax.models.primitives import make_primitive

PRODUCT = 'dense_product'
"""Name of a dense layer's product, by which rematerialisation policies select it."""


def _dot(a: ArrayLike, b: ArrayLike, a_axis: int, b_axis: int) -> Float32[Array, '...']:
    """Sums over these axes in float32, whatever the operands."""
    axes = ((a_axis,), (b_axis,)), ((), ())
    return lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _product(x: ArrayLike, kernel: ArrayLike) -> Float32[Array, '...']:
    return _dot(x, kernel.astype(x.dtype), x.ndim - 1, 0)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def linear(
    x: Float[ArrayLike, '... D'],
    kernel: Float[ArrayLike, 'D F'],
    bias: Float[ArrayLike, ' F'],
    dtype: Any = None,
    sum_by_product: bool = False,
) -> Float[Array, '... F']:
    """Multiplies in the dtype of `x`, adds the bias in float32, and rounds once, to `dtype`.

    Without a `dtype`, that is the one of `x`.

    The gradients of kernel and bias are summed in float32 and returned in the parameters' dtype: in
    float32 they are never rounded to bfloat16, nor added up in it over devices.

    Args:
      sum_by_product: whether a TPU sums the bias's gradient by a product with ones. That is faster
        where XLA cannot add it up while it computes what it is the sum of, a kernel's result.

    The gradients are written out for the sake of CPUs. JAX's own rule computes the kernel's from a
    transposed copy of the incoming gradient, and XLA computes that copy anew from everything the
    gradient came from, through all later blocks; a transposed copy of `x` has no such dependency.
    And bfloat16 products are fast on CPUs only while their sums are float32.
    """
    return (_product(x, kernel) + bias).astype(dtype or x.dtype)


# The tangents are linear too, and their transposes the gradients: primitives of their own, since
# `jax.custom_vjp` would rule out forward mode, and `jax.custom_jvp` alone leaves the transpose to
# JAX. After differentiation in reverse nothing of them is left.
_product_p = make_primitive(
    'dense_tangent', lambda x, kernel, *, dtype: _product(x, kernel).astype(dtype)
)
_bias_p = make_primitive(
    'dense_bias_tangent',
    lambda bias, *, shape, dtype, sum_by_product: jnp.broadcast_to(bias.astype(dtype), shape),
)


def _gradient_of_x(gradient: ArrayLike, x: Any, kernel: ArrayLike, **_) -> Array:
    dtype = x.aval.dtype
    product = _dot(gradient.astype(dtype), kernel.astype(dtype), gradient.ndim - 1, 1)
    return product.astype(dtype)


def _gradient_of_kernel(gradient: ArrayLike, x: ArrayLike, kernel: Any, **_) -> Array:
    # As matrices: XLA turns a sum over several axes into a transposed copy, and where `x` is a
    # GELU it computes the GELU again for that copy, column by column.
    rows = [array.astype(x.dtype).reshape(-1, array.shape[-1]) for array in (x, gradient)]
    if x.dtype == jnp.bfloat16 and platform() == 'cpu':
        return _dot(_transposed(rows[0]), rows[1], 1, 0).astype(kernel.aval.dtype)
    return _dot(*rows, 0, 0).astype(kernel.aval.dtype)


def _transposed(x: ArrayLike) -> Array:
    """Transposes [R, D] by a copy that XLA keeps.

    On a CPU, XLA's fast product of bfloat16 takes rows of its first operand. It merges a plain
    transposition into the product, which then converts both operands to float32: a third of the
    speed. In groups of columns that fill a line of the cache it stays a copy, and each line is read
    into the cache once.
    """
    rows, width = x.shape
    line = math.gcd(width, 32)
    return x.reshape(rows, width // line, line).transpose(1, 2, 0).reshape(width, rows)


def _gradient_of_bias(
    gradient: ArrayLike, bias: Any, *, sum_by_product: bool, **_: Any
) -> tuple[Array]:
    rows = gradient.reshape(-1, gradient.shape[-1])
    total = partial(jnp.sum, axis=0, dtype=jnp.float32)
    if sum_by_product:
        total = partial(lax.platform_dependent, tpu=_sum_by_product, default=total)
    return (total(rows).astype(bias.aval.dtype),)


def _sum_by_product(rows: ArrayLike) -> Float32[Array, ' F']:
    ones = jnp.ones((8, len(rows)), rows.dtype)
    highest = lax.Precision.HIGHEST  # of float32; products of bfloat16 are exact in any case
    return jnp.matmul(ones, rows, precision=highest, preferred_element_type=jnp.float32)[0]


ad.defbilinear(_product_p, _gradient_of_x, _gradient_of_kernel)
ad.deflinear2(_bias_p, _gradient_of_bias)


@partial(linear.defjvp, symbolic_zeros=True)
def _differentiate(dtype, sum_by_product, primals, tangents):
    x, kernel, bias = primals
    dtype = dtype or x.dtype
    of_x, of_kernel, of_bias = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    terms = []  # the last is the first to be transposed
    if of_bias is not None:
        options = dict(dtype=dtype, sum_by_product=sum_by_product)
        shape = (*x.shape[:-1], kernel.shape[1])
        terms.append(_bias_p.bind(of_bias, shape=shape, **options))
    if of_kernel is not None:
        terms.append(_product_p.bind(x, of_kernel, dtype=dtype))
    if of_x is not None:
        terms.append(_product_p.bind(of_x, kernel, dtype=dtype))
    return linear(x, kernel, bias, dtype, sum_by_product), reduce(jnp.add, terms)


class Dense(nn.Module):
    """Linear layer: Xavier-uniform kernel [D, F], zero bias, both float32; computes in `dtype`.

    Attributes:
      out_dtype: of the result; None is `dtype`.
      sum_by_product: as of `linear`.
      zero_bias: from where to where the bias is zero, and not trained; None: nowhere.
    """

    features: int
    dtype: Any = jnp.float32
    out_dtype: Any = None
    kernel_init: Callable[..., Array] = nn.initializers.xavier_uniform()
    bias_init: Callable[..., Array] = nn.initializers.zeros
    sum_by_product: bool = False
    zero_bias: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Float[ArrayLike, '... D']) -> Float[Array, '... {self.features}']:
        x = jnp.asarray(x, self.dtype)
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features))
        bias = self.param('bias', self.bias_init, (self.features,))
        if self.zero_bias is not None:
            start, stop = self.zero_bias
            place = np.arange(self.features)
            bias = jnp.where((place < start) | (place >= stop), bias, 0.0)
        product = linear(x, kernel, bias, self.out_dtype or self.dtype, self.sum_by_product)
        return checkpoint_name(product, PRODUCT)
