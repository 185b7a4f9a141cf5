"""Pallas kernels for attention on a TPU: whole images in VMEM, forward and backward.

Logits are kept transposed, [keys, queries]. The softmax thereby reduces over sublanes, by
operations on whole registers; sums over lanes, which are slow, do not occur. Results that come out
transposed are small, and are transposed once for a window of heads. `tpu_tiles.py` has the tiles.

The weights exist only in VMEM. As in FlashAttention-2 (Dao, 2023, arXiv:2307.08691), the forward
pass stores one float32 a query, the logarithm of the sum that its weights are divided by, and the
backward pass computes the weights from it.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from mae_jax.models.attention import tpu_tiles
from mae_jax.models.attention.tpu_pipeline import each_window, run_stages
from mae_jax.models.attention.tpu_tiles import LANES, SUBLANES, Tile, Tiling

ROWS = 256
"""Tokens of a grid step, at least, where the batch has them: a step costs some 500 cycles."""
VMEM = 100 * 2**20
"""Bytes that a kernel may use of a chip's vector memory."""

_ROWS_BY_ROWS = ((1,), (1,)), ((), ())  # a @ b.T
_PLAIN = ((1,), (0,)), ((), ())  # a @ b


def forward(
    qkv: Float[Array, 'B N E'], heads: int, interpret: bool
) -> tuple[Float[Array, 'B N D'], Float32[Array, 'B w t 128']]:
    """Computes attention; q, k and v stand side by side in the last axis, each head by head.

    Args:
      interpret: whether Pallas' interpreter runs it, on any platform.

    Returns:
      What attention mixes, and the logarithm (to base 2) of each query's sum of weights, for each
      tile of each window.
    """
    batch, tokens, columns = qkv.shape
    tiles = tpu_tiles.tiling(tokens, columns // 3, heads, qkv.dtype)
    mixed, sums = _call(
        _forward,
        'attention_forward',
        tiles,
        interpret,
        [_pad(qkv, 3, tiles.width)],
        [_rows(tiles, batch, 1), _sums(tiles, batch)],
    )
    return _cut(mixed, 1, columns // 3), sums


def backward(
    qkv: Float[Array, 'B N E'],
    sums: Float32[Array, 'B w t 128'],
    gradient: Float[Array, 'B N D'],
    heads: int,
    interpret: bool,
) -> Float[Array, 'B N E']:
    """Computes the gradient of `qkv` from that of what attention mixes, and `forward`'s sums."""
    batch, tokens, columns = qkv.shape
    tiles = tpu_tiles.tiling(tokens, columns // 3, heads, qkv.dtype)
    (of_qkv,) = _call(
        _backward,
        'attention_backward',
        tiles,
        interpret,
        [_pad(qkv, 3, tiles.width), sums, _pad(gradient, 1, tiles.width)],
        [_rows(tiles, batch, 3)],
    )
    return _cut(of_qkv, 3, columns // 3)


def _rows(tiles: Tiling, batch: int, parts: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, tiles.tokens, parts * tiles.width), tiles.dtype)


def _sums(tiles: Tiling, batch: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, tiles.windows, len(tiles.tiles), LANES), jnp.float32)


def _call(
    kernel: Callable[..., None],
    name: str,
    tiles: Tiling,
    interpret: bool,
    inputs: list[Array],
    outputs: list[jax.ShapeDtypeStruct],
) -> Sequence[Array]:
    """Calls a kernel for some images at a time."""
    batch = inputs[0].shape[0]
    images = math.gcd(batch, max(1, 1 << (ROWS // tiles.tokens).bit_length() - 1))

    def block(array):
        rest = array.shape[1:] if array.ndim == 4 else (tiles.rows, array.shape[2])
        return pl.BlockSpec((images, *rest), lambda i: (i, *(0 for _ in rest)))

    return pl.pallas_call(
        functools.partial(kernel, tiles, images),
        grid=(batch // images,),
        in_specs=[block(array) for array in inputs],
        out_specs=[block(array) for array in outputs],
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel',), vmem_limit_bytes=VMEM
        ),
        interpret=interpret,
        name=name,
    )(*inputs)


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


def _forward(tiles: Tiling, images: int, qkv, out, sums) -> None:
    def load(place):
        q, k, v = (_read(tiles, qkv, place, part) for part in range(3))
        return q, _values(tiles, k), _values(tiles, v).T

    def multiply(arrays, tile, _):
        q, k, _ = arrays
        return _logits(tiles, tile, tpu_tiles.rows_of(tiles, tile, q), k)

    def softmax(arrays, tile, logits):
        largest, scale = logits.max(0, keepdims=True), _scale(tiles)
        weights = jnp.exp2((logits - largest) * scale)
        total = weights.sum(0, keepdims=True)
        return weights.astype(tiles.dtype), 1 / total, largest * scale + jnp.log2(total)

    def mix(arrays, tile, previous):
        weights, factor, total = previous
        v = arrays[2][tpu_tiles.columns_of(tiles, tile)]
        return _dot(v, weights, _PLAIN) * factor, total

    def store(place, results):
        mixed, totals = zip(*results, strict=True)
        _write(tiles, out, place, 0, tpu_tiles.join(tiles, list(mixed)))
        sums[place] = jnp.concatenate(totals)

    stages = [multiply, softmax, mix]
    each_window(tiles, images, lambda places: run_stages(tiles, places, load, stages, store))


def _backward(tiles: Tiling, images: int, qkv, sums, gradient, out) -> None:
    whole = tiles.stacked == 1  # a tile's columns are those of one head

    def load(place):
        q, k, v = (_read(tiles, qkv, place, part) for part in range(3))
        of_out, (k, v) = _read(tiles, gradient, place, 0), (_values(tiles, x) for x in (k, v))
        transposed = [k.T]
        if whole:
            transposed += [_queries(tiles, x).T for x in (q, of_out)]
        return q, k, v, of_out, transposed, sums[place]

    def multiply(arrays, tile, _):
        q, k, v, of_out, _, _ = arrays
        q, of_out = (tpu_tiles.rows_of(tiles, tile, x) for x in (q, of_out))
        of_weights = _dot(v[:, tpu_tiles.registers_of(tiles, tile)], of_out, _ROWS_BY_ROWS)
        return q, of_out, _logits(tiles, tile, q, k), of_weights

    def softmax(arrays, tile, previous):
        q, of_out, logits, of_weights = previous
        weights = jnp.exp2(logits * _scale(tiles) - arrays[5][tile.index : tile.index + 1])
        product = weights * of_weights
        of_logits = product - weights * product.sum(0, keepdims=True)
        return q, of_out, weights.astype(tiles.dtype), of_logits.astype(tiles.dtype)

    def multiply_back(arrays, tile, previous):
        q, of_out, weights, of_logits = previous
        columns, transposed = tpu_tiles.columns_of(tiles, tile), arrays[4]
        of_q = _dot(transposed[0][columns], of_logits, _PLAIN)
        if whole:
            lanes = slice(tile.start, tile.start + LANES)
            q, of_out = (x[columns, lanes] for x in transposed[1:])
            of_k, of_v = _dot(q, of_logits, _ROWS_BY_ROWS), _dot(of_out, weights, _ROWS_BY_ROWS)
        else:
            of_k, of_v = _dot(of_logits, q, _PLAIN), _dot(weights, of_out, _PLAIN)
        return of_q * tiles.head_width**-0.5, of_k * tiles.head_width**-0.5, of_v

    def store(place, results):
        of_q, *others = map(list, zip(*results, strict=True))
        _write(tiles, out, place, 0, tpu_tiles.join(tiles, of_q))
        add = tpu_tiles.add_by_head if whole else tpu_tiles.add_by_columns
        for part, values in enumerate(others, start=1):
            _write(tiles, out, place, part, add(tiles, values))

    stages = [multiply, softmax, multiply_back]
    each_window(tiles, images, lambda places: run_stages(tiles, places, load, stages, store))


def _at(tiles: Tiling, place: tuple, part: int) -> tuple:
    image, window = place
    start = part * tiles.width + window * tiles.window
    start = start if isinstance(start, int) else pl.multiple_of(start, LANES)
    return image, slice(None), pl.ds(start, tiles.window)


def _read(tiles: Tiling, ref, place: tuple, part: int) -> Array:
    """Returns the bits of a window; rows of padding, which may hold anything, become zero."""
    return tpu_tiles.words(ref[_at(tiles, place, part)]) & tpu_tiles.is_token(tiles)


def _write(tiles: Tiling, ref, place: tuple, part: int, values: Array) -> None:
    ref[_at(tiles, place, part)] = values.astype(tiles.dtype)


def _values(tiles: Tiling, bits: Array) -> Array:
    return pltpu.bitcast(bits, tiles.dtype)


def _queries(tiles: Tiling, bits: Array) -> Array:
    """Returns values with rows of zeros after them that fill tiles."""
    rows = pl.cdiv(tiles.tokens, LANES) * LANES
    return _values(tiles, tpu_tiles.fill(bits, rows // tiles.packed))


def _logits(tiles: Tiling, tile: Tile, q: Array, k: Array) -> Float32[Array, 'rows 128']:
    """Returns the logits of a tile, -inf in rows of padding."""
    logits = _dot(k[:, tpu_tiles.registers_of(tiles, tile)], q, _ROWS_BY_ROWS)
    whole = tiles.tokens // SUBLANES * SUBLANES
    if whole == tiles.rows:
        return logits
    row = jax.lax.broadcasted_iota(jnp.int32, (tiles.rows - whole, 1), 0)
    last = jnp.where(row < tiles.tokens - whole, logits[whole:], -jnp.inf)
    return jnp.concatenate([logits[:whole], last])


def _scale(tiles: Tiling) -> float:
    """Returns what logits are multiplied by: weights are powers of two."""
    return tiles.head_width**-0.5 * math.log2(math.e)


def _dot(a: Array, b: Array, dimensions: tuple) -> Float32[Array, '...']:
    """Multiplies with sums in float32; float32 operands at full precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )
