"""How the TPU's kernels cut an image's heads into tiles that fill the chip's registers.

A window is a range of columns at whose ends heads and registers begin together (128 columns: four
heads of 32, two of 64; 640: eight of 80). A tile is 128 queries of a window: those of several heads
one after the other where sequences are short, else a part of one head's. Logits of a tile are
[keys, 128].

Columns of other heads are set to zero in the queries of a tile. A product then needs no narrow
slices of q, k and v, which would be moved across lanes, and costs the same: the matrix unit
multiplies 128 columns or fewer in one pass.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, UInt32

LANES = 128
"""Columns of a register; arrays are cut at multiples of it."""
SUBLANES = 16
"""Rows are padded to a multiple of it: those of a register in bfloat16."""
ALL = 0xFFFFFFFF


class Tile(NamedTuple):
    """Queries of a window that are computed together; `start` is the first in each head."""

    index: int
    heads: range
    start: int


class Tiling(NamedTuple):
    """How attention over [batch, tokens, 3 x columns] is cut.

    Attributes:
      width: columns with padding, a multiple of `window`.
      window: columns of a window.
      window_heads: heads of a window.
      stacked: heads of a tile; 1 where each head's queries fill tiles of their own.
    """

    tokens: int
    head_width: int
    dtype: Any
    width: int
    window: int
    window_heads: int
    stacked: int

    @property
    def rows(self) -> int:
        """Tokens with padding."""
        return pl.cdiv(self.tokens, SUBLANES) * SUBLANES

    @property
    def windows(self) -> int:
        return self.width // self.window

    @property
    def tiles(self) -> list[Tile]:
        """The tiles of a window."""
        heads = [
            range(head, min(head + self.stacked, self.window_heads))
            for head in range(0, self.window_heads, self.stacked)
        ]
        starts = range(0, self.tokens, LANES)
        pairs = [(which, start) for which in heads for start in starts]
        return [Tile(index, *pair) for index, pair in enumerate(pairs)]

    @property
    def stride(self) -> int:
        """Lanes from a head of a tile to the next."""
        return LANES // self.stacked

    @property
    def packed(self) -> int:
        """Values of a word of 32 bits."""
        return 4 // jnp.dtype(self.dtype).itemsize


def tiling(tokens: int, columns: int, heads: int, dtype: Any) -> Tiling:
    """Returns how attention of `heads` heads over `columns` columns is cut."""
    head_width = columns // heads
    width = pl.cdiv(columns, LANES) * LANES
    cycle = math.lcm(head_width, LANES)
    window = cycle if columns % cycle == 0 else width
    window_heads = min(window, columns) // head_width
    stacked = max((n for n in (1, 2, 4, 8) if n * max(tokens, SUBLANES) <= LANES), default=1)
    stacked = min(stacked, 1 << (window_heads.bit_length() - 1))
    return Tiling(tokens, head_width, dtype, width, window, window_heads, stacked)


def columns_of(tiling: Tiling, tile: Tile) -> slice:
    """Returns the columns of a tile's heads in the window."""
    return slice(tile.heads.start * tiling.head_width, tile.heads.stop * tiling.head_width)


def registers_of(tiling: Tiling, tile: Tile) -> slice:
    """Returns the columns of the registers that hold a tile's heads."""
    columns = columns_of(tiling, tile)
    return slice(columns.start // LANES * LANES, pl.cdiv(columns.stop, LANES) * LANES)


def words(array: Array) -> UInt32[Array, '...']:
    """Returns the bits of an array, pairs of rows in a word where it is bfloat16."""
    return pltpu.bitcast(array, jnp.uint32)


def is_token(tiling: Tiling) -> UInt32[Array, 'rows 1']:
    """Returns bits that are set in the rows [of words] that are tokens, not padding."""
    row = jax.lax.broadcasted_iota(jnp.int32, (tiling.rows // tiling.packed, 1), 0)
    row *= tiling.packed
    none, every = jnp.uint32(0), jnp.uint32(ALL)
    last = jnp.uint32(ALL >> 32 - 32 // tiling.packed)  # the first row of a word alone
    whole = jnp.where(row + tiling.packed <= tiling.tokens, every, last)
    return jnp.where(row < tiling.tokens, whole, none)


def _is_head(tiling: Tiling, head: int, columns: slice) -> UInt32[Array, '1 columns']:
    column = jax.lax.broadcasted_iota(jnp.int32, (1, columns.stop - columns.start), 1)
    first = head * tiling.head_width - columns.start
    inside = (column >= first) & (column < first + tiling.head_width)
    return jnp.where(inside, jnp.uint32(ALL), jnp.uint32(0))


def rows_of(
    tiling: Tiling, tile: Tile, array: UInt32[Array, 'rows window']
) -> Float[Array, '128 columns']:
    """Returns the rows of a tile's queries, zero in columns of other heads than theirs.

    Args:
      array: bits of q, or of the gradient of the output; zero in padded rows.
    """
    columns = registers_of(tiling, tile)
    start, count = tile.start // tiling.packed, tiling.stride // tiling.packed
    rows = array[start : start + count, columns]
    rows = fill(rows, count)
    parts = [rows & _is_head(tiling, head, columns) for head in tile.heads]
    return pltpu.bitcast(fill(jnp.concatenate(parts), LANES // tiling.packed), tiling.dtype)


def fill(array: Array, rows: int) -> Array:
    """Adds rows of zeros up to a number of them."""
    missing = rows - array.shape[0]
    if not missing:
        return array
    return jnp.concatenate([array, jnp.zeros((missing, array.shape[1]), array.dtype)])


def join(tiling: Tiling, results: list[Float[Array, '_ keys']]) -> Float[Array, 'rows window']:
    """Joins what was computed for each tile, transposed: [its heads' columns, queries]."""
    if tiling.stacked > 1:
        joined = [_unstack(tiling, *pair) for pair in zip(tiling.tiles, results, strict=True)]
        return pltpu.bitcast(_either(joined), tiling.dtype)
    parts = len(results) // tiling.window_heads
    heads = [
        jnp.concatenate(results[first : first + parts], axis=1)
        for first in range(0, len(results), parts)
    ]
    return _turn(tiling, heads)


def add_by_head(
    tiling: Tiling, results: list[Float[Array, '_ keys']]
) -> Float[Array, 'rows window']:
    """Adds what was computed for each tile, transposed: [its head's columns, keys]."""
    parts = len(results) // tiling.window_heads
    return _turn(
        tiling, [sum(results[i + 1 : i + parts], results[i]) for i in range(0, len(results), parts)]
    )


def add_by_columns(
    tiling: Tiling, results: list[Float[Array, 'keys _']]
) -> Float[Array, 'rows window']:
    """Adds what was computed for each tile: [keys, its registers' columns]."""
    sums = {}
    for tile, result in zip(tiling.tiles, results, strict=True):
        registers = registers_of(tiling, tile)
        for column in range(registers.start, registers.stop, LANES):
            part = result[:, column - registers.start : column - registers.start + LANES]
            sums[column] = sums[column] + part if column in sums else part
    empty = jnp.zeros_like(next(iter(sums.values())))
    return jnp.concatenate([sums.get(c, empty) for c in range(0, tiling.window, LANES)], axis=1)


def _turn(tiling: Tiling, heads: list[Array]) -> Float[Array, 'rows window']:
    return fill(jnp.concatenate(heads), tiling.window).astype(tiling.dtype).T[: tiling.rows]


def _either(arrays: list[Array]) -> Array:
    result = arrays[0]
    for array in arrays[1:]:
        result |= array
    return result


def _unstack(tiling: Tiling, tile: Tile, result: Array) -> UInt32[Array, 'rows window']:
    """Returns the bits of a tile's result in its window, zero in columns of other tiles."""
    columns, registers = columns_of(tiling, tile), registers_of(tiling, tile)
    before = jnp.zeros((columns.start - registers.start, LANES), result.dtype)
    result = jnp.concatenate([before, result]) if before.shape[0] else result
    result = fill(result, registers.stop - registers.start).astype(tiling.dtype)
    bits, stride = words(result.T), tiling.stride // tiling.packed
    rows = tiling.rows // tiling.packed
    parts = []
    for place, head in enumerate(tile.heads):
        own = bits[place * stride : place * stride + rows]
        parts.append(own & _is_head(tiling, head, registers))
    return _place(_either(parts), registers.start, tiling.window)


def _place(array: Array, start: int, width: int) -> Array:
    """Puts an array at a column of one of zeros."""
    rows, columns = array.shape
    parts = [
        jnp.zeros((rows, start), array.dtype),
        array,
        jnp.zeros((rows, width - start - columns), array.dtype),
    ]
    parts = [part for part in parts if part.shape[1]]
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else array
