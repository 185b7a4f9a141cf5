"""Relative positions: what attention adds to its logits for the offset of a key from its query."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Float32
from scipy.interpolate import make_interp_spline

from mae_jax.errors import UserError
from mae_jax.models.options import EncoderOptions

CLS_ENTRIES = 3
"""Of a BEiT table, its last: the cls token's query, its key, and both."""


class FactoredBias(NamedTuple):
    """What is added to the logits, as a product: the sum over e of `queries` times `keys`."""

    queries: Float32[Array, 'B N h e']
    keys: Float32[Array, 'N e']


Bias = Float32[Array, '#B h N N'] | FactoredBias
"""What is added to the logits."""


def table_rows(grid: tuple[int, int], cls_token: bool = True) -> int:
    """Returns the rows of a BEiT table: one for each offset, and `CLS_ENTRIES`."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLS_ENTRIES * cls_token


def relative_rows(options: EncoderOptions, block: int, grid: tuple[int, int]) -> dict[str, int]:
    """Returns the name of each parameter for relative positions in a block -> its rows."""
    window = options.window_of(block)
    grid = (window, window) if window else grid
    if options.relative_positions == 'beit':
        return {'relative_table': table_rows(grid, options.cls_token)}
    if options.relative_positions == 'vitdet':
        return {'rel_pos_h': 2 * grid[0] - 1, 'rel_pos_w': 2 * grid[1] - 1}
    return {}


def beit_bias(
    table: Float32[ArrayLike, 'R h'], grid: tuple[int, int], cls_token: bool = True
) -> Float32[Array, '1 h T T']:
    """Looks up the bias of every query and key in a BEiT table (BEiT, arXiv 2106.08254).

    Rows of the table are ordered by vertical, then by horizontal offset of the query from the key.
    They are followed, with a cls token, by those of its query, of its key, and of both.
    """
    sides, count = [2 * side - 1 for side in grid], math.prod(grid)
    rows = [table_rows(grid, cls_token=False)] + CLS_ENTRIES * cls_token * [1]
    offsets, *of_cls = (x.T for x in jax.lax.split(whole(table), rows))
    bias = by_offset(offsets.reshape(-1, *sides), grid[1])
    bias = by_offset(jnp.moveaxis(bias, 1, -1), grid[0])
    bias = bias.transpose(0, 3, 1, 4, 2).reshape(-1, count, count)
    if cls_token:
        query, key, both = (x[..., None] for x in of_cls)
        first = jnp.concatenate([both, jnp.repeat(query, count, axis=2)], axis=2)
        others = jnp.concatenate([jnp.repeat(key, count, axis=1), bias], axis=2)
        bias = jnp.concatenate([first, others], axis=1)
    return bias[None]


def vitdet_bias(
    queries: Float[Array, 'B N h d'],
    rel_pos_h: Float32[ArrayLike, 'V d'],
    rel_pos_w: Float32[ArrayLike, 'W d'],
    grid: tuple[int, int],
) -> FactoredBias:
    """Multiplies queries with embeddings of vertical and horizontal offsets (arXiv 2203.16527).

    The factors are the products with each row and each column, and of keys the row and the column
    they are in, as ones among zeros.

    Args:
      queries: before they are divided by the root of d, as in ViTDet.
      rel_pos_h, rel_pos_w: a row for each offset of the query from the key, ascending: of V =
        2 * rows - 1 and W = 2 * columns - 1.
      grid: rows and columns of patches.
    """
    batch, _, heads, width = queries.shape
    cells = queries.reshape(batch, *grid, heads, width)

    def products(equation: str, embeddings: ArrayLike, side: int) -> Float32[Array, '...']:
        of_keys = by_offset(whole(embeddings).T, side).astype(queries.dtype)
        return jnp.einsum(equation, cells, of_keys, preferred_element_type=jnp.float32)

    down = products('brchd,drk->brchk', rel_pos_h, grid[0])
    right = products('brchd,dck->brchk', rel_pos_w, grid[1])
    factors = jnp.concatenate([down, right], axis=-1).reshape(batch, -1, heads, sum(grid))
    rows, columns = (np.eye(side, dtype=np.float32) for side in grid)
    places = [np.repeat(rows, grid[1], axis=0), np.tile(columns, (grid[0], 1))]
    return FactoredBias(factors, jnp.asarray(np.concatenate(places, axis=1)))


def join_bias(
    q: Float[Array, 'B N h d'], k: Float[Array, 'B N h d'], bias: Bias | None
) -> tuple[Array, Array, Float32[Array, '#B h N N'] | None]:
    """Joins a factored bias to queries, already scaled, and keys: their product then contains it.

    Its N x N values are not held: of 12 heads and 4,096 patches 768 MiB an image.

    Returns:
      Queries, keys, and a bias that has no factors and is still to be added.
    """
    if not isinstance(bias, FactoredBias):
        return q, k, bias
    keys = jnp.broadcast_to(bias.keys[:, None], (*k.shape[:3], bias.keys.shape[-1]))
    q = jnp.concatenate([q, bias.queries.astype(q.dtype)], axis=-1)
    return q, jnp.concatenate([k, keys.astype(k.dtype)], axis=-1), None


def by_offset(
    values: Float[ArrayLike, '*S {2*side-1}'], side: int
) -> Float[Array, '*S {side} {side}']:
    """Returns for query i and key j in a row of `side` the value of their offset, i - j.

    Values are ordered by offset. In a copy for each query they are shifted by one place more than
    in that before: the gradient of an index would be a scatter.
    """
    values = jnp.asarray(values)
    *others, count = values.shape
    copies = jnp.repeat(values[..., None, :], side, axis=-2).reshape(*others, -1)
    margins = [(0, 0)] * len(others) + [(0, side)]
    shifted = jnp.pad(copies, margins).reshape(*others, side, count + 1)
    return jnp.flip(shifted[..., :side], axis=-1)


def whole(table: Float32[ArrayLike, 'R C']) -> Float32[Array, 'R C']:
    """Gathers a table on every device of the mesh that is set around the call, if there is one.

    Left to itself, XLA splits the logits as the table is split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or mesh.size == 1:
        return jnp.asarray(table)
    return jax.lax.with_sharding_constraint(jnp.asarray(table), PartitionSpec())


def resize_table(
    table: Float[ArrayLike, 'R h'], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float32[np.ndarray, 'S h']:
    """Resizes a BEiT table to another grid of patches, as BEiT does for fine-tuning.

    The old offsets are placed at distances that grow geometrically, such that the largest reaches
    the largest new offset: near ones keep their meaning. Between them is a cubic spline. The
    entries of the cls token stay. On the same grid timm is linear between them, and transformers
    resizes the table as an image, bilinearly: at another size their outputs differ from ours.

    Raises:
      UserError: the table is not of `old_grid`.
    """
    table = np.asarray(table, np.float32)
    offsets = table_rows(old_grid, cls_token=False)
    if table.ndim != 2 or len(table) - offsets not in (0, CLS_ENTRIES):
        raise UserError(
            f'A table of relative positions of shape {list(table.shape)} does not belong to '
            f'{old_grid[0]} x {old_grid[1]} patches: give the image_size it was trained with.'
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    resized = table[:offsets].reshape(2 * old_grid[0] - 1, 2 * old_grid[1] - 1, -1)
    for axis, (old, new) in enumerate(zip(old_grid, new_grid, strict=True)):
        resized = _spline(_distances(old, new), resized, np.arange(1.0 - new, new), axis)
    resized = resized.reshape(-1, table.shape[1]).astype(np.float32)
    return np.concatenate([resized, table[offsets:]])


def _distances(old: int, new: int) -> Float[np.ndarray, ' {2*old-1}']:
    """Places the offsets of `old` patches in a row among those of `new`: symmetric, geometric."""
    low, high = 1.01, 1.5  # of the ratio, with the precision of BEiT
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1 - ratio ** (old - 1)) / (1 - ratio)
        low, high = (low, ratio) if reach > new - 1 else (ratio, high)
    right = np.cumsum(ratio ** np.arange(old - 1.0))
    return np.concatenate([-right[::-1], [0.0], right])


def _spline(
    x: Float[np.ndarray, ' n'], values: Float[np.ndarray, '...'], at: np.ndarray, axis: int
) -> Float[np.ndarray, '...']:
    """Interpolates along an axis; beyond the ends the values there are repeated."""
    if len(x) == 1:
        return np.repeat(values, len(at), axis)
    spline = make_interp_spline(x, values.astype(np.float64), k=min(3, len(x) - 1), axis=axis)
    return spline(np.clip(at, x[0], x[-1]))


def resize_offsets(embeddings: Float[ArrayLike, 'V d'], side: int) -> Float32[np.ndarray, 'W d']:
    """Resizes embeddings of offsets to those of `side` patches in a row, linearly, as ViTDet does.

    That is PyTorch's interpolation (align_corners=False): between centres, the ends repeated.
    """
    embeddings = np.asarray(embeddings, np.float32)
    old, new = len(embeddings), 2 * side - 1
    if old == new:
        return embeddings
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    below = np.minimum(at.astype(int), max(old - 2, 0))
    above, share = np.minimum(below + 1, old - 1), (at - below)[:, None]
    resized = embeddings[below] * (1 - share) + embeddings[above] * share
    return resized.astype(np.float32)
