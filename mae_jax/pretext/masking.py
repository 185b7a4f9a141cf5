"""Which patches are hidden: noise for each patch, and the mask that follows from it (section 3).

The noise decides everything: the patches of the smallest are kept. A strategy is a function that
draws it. The same noise gives the same mask, in the original implementation too.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int, Int32, PRNGKeyArray

from mae_jax.errors import UserError
from mae_jax.registry import Registry, is_path

BLOCK_MIN_AREA = 16 / 196
"""Smallest rectangle of block-wise masking, as a share of the patches: BEiT's 16 of 14 x 14. It is
smaller only where fewer patches remain to be hidden."""
BLOCK_ASPECT = (0.3, 1 / 0.3)
"""Range of height over width of its rectangles, where they fit."""


class Masking(NamedTuple):
    """Which of N patches are kept, for each of B examples."""

    ids_keep: Int32[Array, 'B K']
    """The patches that the encoder sees, in the order it sees them."""
    ids_restore: Int32[Array, 'B N']
    """Position of each patch in the sequence of kept, then hidden patches."""
    mask: Bool[Array, 'B N']
    """True where a patch is hidden."""


def num_kept(num_patches: int, ratio: float, *, may_hide_none: bool = False) -> int:
    """Computes the number of visible patches, K = floor(N * (1 - ratio)), without float error.

    Args:
      num_patches: N.
      ratio: share to hide.
      may_hide_none: whether K = N is allowed, because the loss covers visible patches too.

    Raises:
      UserError: the ratio is outside [0, 1), or nothing stays visible, or nothing is hidden.
    """
    if not 0 <= ratio < 1:
        raise UserError(f'mask.ratio={ratio} is not in [0, 1): the paper hides 0.75 of an image.')
    # 1 - 0.9 is 0.09999999999999998 in binary: without the margin, 10 patches would keep none.
    kept = math.floor(num_patches * (1 - ratio) + 1e-6)
    if kept == 0:
        raise UserError(
            f'mask.ratio={ratio} leaves none of the {num_patches} patches visible: choose a '
            'smaller mask.ratio or a smaller model.patch_size.'
        )
    if kept == num_patches and not may_hide_none:
        raise UserError(
            f'mask.ratio={ratio} hides none of the {num_patches} patches, and the loss covers '
            "the hidden ones: choose a larger mask.ratio, or target.loss_on='all'."
        )
    return kept


def _random(
    key: PRNGKeyArray, batch_size: int, grid: tuple[int, int], num_kept: int
) -> Float32[Array, 'B N']:
    """Hides every patch with the same probability ("random sampling", the paper's own)."""
    return jax.random.uniform(key, (batch_size, grid[0] * grid[1]), jnp.float32)


def _grid(
    key: PRNGKeyArray, batch_size: int, grid: tuple[int, int], num_kept: int
) -> Float32[Array, 'B N']:
    """Keeps one of every 2 x 2 patches, the same throughout an image ("grid-wise sampling").

    Which of the four is drawn for each image, so that no position is hidden in all images.
    """
    if grid[0] % 2 or grid[1] % 2 or 4 * num_kept != grid[0] * grid[1]:
        raise UserError(
            "mask.strategy='grid' keeps one of every 2 x 2 patches: it needs mask.ratio=0.75 and "
            f'an even number of patches a side, not {num_kept} of {grid[0]} x {grid[1]} visible.'
        )
    noise = _random(key, batch_size, grid, num_kept)
    corner = jax.random.randint(jax.random.fold_in(key, 1), (batch_size, 2), 0, 2)
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    kept = (row % 2 == corner[:, :1]) & (column % 2 == corner[:, 1:])
    return _order_hidden_last(~kept, noise, noise)


def _block(
    key: PRNGKeyArray, batch_size: int, grid: tuple[int, int], num_kept: int
) -> Float32[Array, 'B N']:
    """Hides large rectangles ("block-wise sampling", as BEiT, arXiv 2106.08254, algorithm 1).

    Rectangles are drawn one after the other until enough patches are hidden, each with an area of
    up to the number that remains (or of the smallest rectangle, where fewer remain). What the last
    one covers beyond that number stays visible, from its top.
    """
    num_hidden = grid[0] * grid[1] - num_kept
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])

    def draw_one(key):
        """Returns the rectangle that hides each patch, -1 for none, and the order of patches."""

        def add(state):
            number, covered_by = state
            remaining = num_hidden - jnp.sum(covered_by >= 0)
            key_of_number = jax.random.fold_in(key, number)
            top, left, height, width = _draw_rectangle(key_of_number, grid, remaining)
            inside = (row >= top) & (row < top + height)
            inside &= (column >= left) & (column < left + width)
            return number + 1, jnp.where(inside & (covered_by < 0), number, covered_by)

        def unfinished(state):
            return jnp.sum(state[1] >= 0) < num_hidden

        uncovered = jnp.full(row.shape, -1)
        number, covered_by = jax.lax.while_loop(unfinished, add, (0, uncovered))
        return covered_by, 1 - (covered_by + 1) / (number + 1)  # the first rectangle is largest

    keys = jax.random.split(jax.random.fold_in(key, 1), batch_size)
    covered_by, order = jax.vmap(draw_one)(keys)
    noise = _random(key, batch_size, grid, num_kept)
    return _order_hidden_last(covered_by >= 0, order, noise)


def _draw_rectangle(
    key: PRNGKeyArray, grid: tuple[int, int], remaining: Int[Array, '']
) -> tuple[Int[Array, ''], Int[Array, ''], Int[Array, ''], Int[Array, '']]:
    """Draws top row, left column, height and width of a rectangle within the grid.

    Its area is uniform between the smallest rectangle's and `remaining`, whichever is larger; its
    aspect is log-uniform over the range that fits.
    """
    rows, columns = grid
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    least = max(rows * columns * BLOCK_MIN_AREA, 1.0)
    area = jax.random.uniform(
        area_key, minval=jnp.minimum(least, remaining), maxval=jnp.maximum(least, remaining)
    )
    high = jnp.minimum(BLOCK_ASPECT[1], rows**2 / area)
    low = jnp.minimum(high, jnp.maximum(BLOCK_ASPECT[0], area / columns**2))
    log_aspect = jax.random.uniform(aspect_key, minval=jnp.log(low), maxval=jnp.log(high))
    height = jnp.clip(jnp.round(jnp.sqrt(area * jnp.exp(log_aspect))), 1, rows).astype(int)
    width = jnp.clip(jnp.round(jnp.sqrt(area / jnp.exp(log_aspect))), 1, columns).astype(int)
    top = jax.random.randint(top_key, (), 0, rows - height + 1)
    left = jax.random.randint(left_key, (), 0, columns - width + 1)
    return top, left, height, width


def _order_hidden_last(
    hidden: Bool[Array, 'B N'], of_hidden: Float32[Array, 'B N'], of_kept: Float32[Array, 'B N']
) -> Float32[Array, 'B N']:
    """Computes noise in [0, 1): that of hidden patches in the upper half, others in the lower."""
    return jnp.where(hidden, 0.5 + of_hidden / 2, of_kept / 2)


STRATEGIES = Registry(
    'mask strategy', 'mask.strategy', {'random': _random, 'block': _block, 'grid': _grid}
)
"""Functions (key, batch_size, grid, num_kept) -> noise float32 [B, N] in [0, 1), by name."""


@dataclasses.dataclass(frozen=True)
class MaskingRule:
    """How a model masks: how many patches of an image are hidden, and by which strategy.

    Attributes:
      ratio: share of the patches to hide.
      strategy: a name in `STRATEGIES`; 'module:function' must have been looked up there before.
      may_hide_none: whether K = N is allowed, because the loss covers visible patches too.
    """

    ratio: float = 0.75
    strategy: str = 'random'
    may_hide_none: bool = False

    def num_kept(self, num_patches: int) -> int:
        """Returns K, how many of `num_patches` stay visible; raises as `num_kept` does."""
        return num_kept(num_patches, self.ratio, may_hide_none=self.may_hide_none)

    def draw_noise(
        self, key: PRNGKeyArray, batch_size: int, grid: tuple[int, int]
    ) -> Float32[Array, 'B N']:
        """Draws noise in [0, 1), independently for each example.

        Args:
          key: for the whole batch.
          batch_size: B.
          grid: rows and columns of patches, N in all.

        Raises:
          UserError: the strategy is unknown, or cannot keep this number of patches.
        """
        draw = STRATEGIES.get(self.strategy, may_import=False)
        return draw(key, batch_size, grid, self.num_kept(grid[0] * grid[1]))

    def mask(self, noise: Float[ArrayLike, 'B N']) -> Masking:
        """Keeps the patches of smallest noise; see `masking_from_noise`."""
        return masking_from_noise(noise, self.num_kept(noise.shape[1]))


def make_masking(
    ratio: float, strategy: str, *, may_hide_none: bool = False, may_import: bool = True
) -> MaskingRule:
    """Makes the masking of a model.

    Args:
      ratio, strategy, may_hide_none: fields of `MaskingRule`.
      may_import: whether a strategy 'module:function' is imported. Without it, and unless the name
        is registered, the model cannot draw noise and must be given it.

    Raises:
      UserError: the strategy is unknown or cannot be imported.
    """
    if may_import or not is_path(strategy):
        STRATEGIES.get(strategy)
    return MaskingRule(ratio, strategy, may_hide_none)


def masking_from_noise(noise: Float[ArrayLike, 'B N'], num_kept: int) -> Masking:
    """Keeps the `num_kept` patches of smallest noise of each example; the first among equals.

    Args:
      noise: of every patch.
      num_kept: K, a Python integer, which makes the shapes static.
    """
    ids_shuffle = jnp.argsort(noise, axis=1, stable=True).astype(jnp.int32)
    ids_restore = jnp.argsort(ids_shuffle, axis=1).astype(jnp.int32)
    return Masking(ids_shuffle[:, :num_kept], ids_restore, ids_restore >= num_kept)
