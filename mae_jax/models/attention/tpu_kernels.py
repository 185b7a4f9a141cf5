"""Pallas kernels for attention on a TPU: all heads of an image in VMEM, forward and backward.

Logits are kept transposed, [keys, queries]. The softmax thereby reduces over sublanes, by
additions of whole registers, and a sum over keys scales columns; sums over lanes, which are slow,
do not occur. Of the three products whose result is needed as [tokens, width], two have it so; the
third, and the output of the forward pass, are transposed after the product, when they are small.

The weights N x N exist only in VMEM, in float32, and the backward pass computes them again.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

LANES = 128
"""Columns of a register; arrays are cut at multiples of it."""
ROWS = 256
"""Tokens of a grid step, at least, where the batch has them: a step costs some 500 cycles."""
VMEM = 100 * 2**20
"""Bytes that a kernel may use of a chip's vector memory."""

_ROWS_BY_ROWS = ((1,), (1,)), ((), ())  # a @ b.T
_PLAIN = ((1,), (0,)), ((), ())  # a @ b
_LOG2E = math.log2(math.e)


def forward(qkv: Float[Array, 'B N E'], heads: int, interpret: bool) -> Float[Array, 'B N D']:
    """Computes attention; q, k and v stand side by side in the last axis, each head by head.

    Args:
      interpret: whether Pallas' interpreter runs it, on any platform.
    """
    return _call(_forward, 'attention_forward', heads, interpret, 1, qkv)


def backward(
    qkv: Float[Array, 'B N E'], gradient: Float[Array, 'B N D'], heads: int, interpret: bool
) -> Float[Array, 'B N E']:
    """Computes the gradient of `qkv` from that of what `forward` returns."""
    return _call(_backward, 'attention_backward', heads, interpret, 3, qkv, gradient)


def _call(
    kernel: Callable[..., None],
    name: str,
    heads: int,
    interpret: bool,
    parts: int,
    qkv: Array,
    *others: Array,
) -> Array:
    """Calls a kernel whose result has `parts` arrays [B, N, D] side by side."""
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    padded = pl.cdiv(width, LANES) * LANES
    arrays = [_pad(qkv, 3, padded), *(_pad(array, 1, padded) for array in others)]
    images = math.gcd(batch, max(1, 1 << (ROWS // tokens).bit_length() - 1))
    head_width = width // heads
    cycle = math.lcm(head_width, LANES)  # after which heads and registers begin together
    window = cycle if width % cycle == 0 else padded
    body = functools.partial(
        kernel,
        head_width=head_width,
        heads=min(window, width) // head_width,
        width=padded,
        window=window,
    )

    def block(columns):
        return pl.BlockSpec((images, tokens, columns), lambda i: (i, 0, 0))

    result = pl.pallas_call(
        functools.partial(_each_window, body, images, padded // window),
        grid=(batch // images,),
        in_specs=[block(array.shape[-1]) for array in arrays],
        out_specs=block(parts * padded),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, parts * padded), qkv.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel',), vmem_limit_bytes=VMEM
        ),
        interpret=interpret,
        name=name,
    )(*arrays)
    return _cut(result, parts, width)


def _pad(array: Array, parts: int, width: int) -> Array:
    """Fills each of the arrays that stand side by side up to `width` columns."""
    batch, tokens, columns = array.shape
    if columns == parts * width:
        return array
    apart = array.reshape(batch, tokens, parts, columns // parts)
    apart = jnp.pad(apart, ((0, 0),) * 3 + ((0, width - columns // parts),))
    return apart.reshape(batch, tokens, parts * width)


def _cut(array: Array, parts: int, width: int) -> Array:
    """Inverts `_pad`."""
    batch, tokens, columns = array.shape
    if columns == parts * width:
        return array
    apart = array.reshape(batch, tokens, parts, columns // parts)[..., :width]
    return apart.reshape(batch, tokens, parts * width)


def _each_window(body: Callable[..., None], images: int, windows: int, *refs) -> None:
    """Runs `body` for each image and each window of columns that holds whole heads."""

    def step(index, carry):
        # Python's `//` of signed numbers would ask for the kind of device that traces it.
        body(jax.lax.div(index, windows), jax.lax.rem(index, windows), *refs)
        return carry

    jax.lax.fori_loop(0, images * windows, step, None)


def _forward(image, index, qkv, out, *, head_width, heads, width, window):
    q, k, v = (qkv[image, :, _columns(part * width, index, window)] for part in range(3))
    v = v.T
    mixed = []
    for head in range(heads):
        columns = slice(head * head_width, (head + 1) * head_width)
        weights, total = _weights(q[:, columns], k[:, columns])
        mixed.append(_dot(v[columns], weights.astype(v.dtype), _PLAIN) * (1 / total))
    out[image, :, _columns(0, index, window)] = _join(mixed, window).T.astype(out.dtype)


def _backward(image, index, qkv, gradient, out, *, head_width, heads, width, window):
    q, k, v = (qkv[image, :, _columns(part * width, index, window)] for part in range(3))
    of_out = gradient[image, :, _columns(0, index, window)]
    k_transposed, scale = k.T, head_width**-0.5
    of_q, of_k, of_v = [], [], []
    for head in range(heads):
        columns = slice(head * head_width, (head + 1) * head_width)
        weights, total = _weights(q[:, columns], k[:, columns])
        weights *= 1 / total
        of_weights = _dot(v[:, columns], of_out[:, columns], _ROWS_BY_ROWS)
        product = weights * of_weights
        of_logits = product - weights * product.sum(0, keepdims=True)
        of_logits = (of_logits * scale).astype(q.dtype)
        of_v.append(_dot(weights.astype(q.dtype), of_out[:, columns], _PLAIN))
        of_k.append(_dot(of_logits, q[:, columns], _PLAIN))
        of_q.append(_dot(k_transposed[columns], of_logits, _PLAIN))
    parts = _join(of_q, window).T, _join(of_k, window, axis=1), _join(of_v, window, axis=1)
    for part, value in enumerate(parts):
        out[image, :, _columns(part * width, index, window)] = value.astype(out.dtype)


def _columns(start: int, index: Array, window: int):
    return pl.ds(pl.multiple_of(start + index * window, LANES), window)


def _join(arrays: list[Array], length: int, axis: int = 0) -> Array:
    """Joins the heads of a window; zeros follow where its last columns belong to none."""
    missing = length - sum(array.shape[axis] for array in arrays)
    if missing:
        shape = (missing, arrays[0].shape[1]) if axis == 0 else (arrays[0].shape[0], missing)
        arrays = [*arrays, jnp.zeros(shape, arrays[0].dtype)]
    return jnp.concatenate(arrays, axis=axis)


def _weights(q: Array, k: Array) -> tuple[Array, Array]:
    """Returns weights [keys, queries] before their division by totals [1, queries], float32."""
    logits = _dot(k, q, _ROWS_BY_ROWS)
    scale = q.shape[-1] ** -0.5 * _LOG2E
    weights = jnp.exp2((logits - logits.max(0, keepdims=True)) * scale)
    return weights, weights.sum(0, keepdims=True)


def _dot(a: Array, b: Array, dimensions: tuple) -> Float[Array, '...']:
    """Multiplies with sums in float32; float32 operands at full precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )
