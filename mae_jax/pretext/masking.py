"""What is hidden: a score for each patch, and the mask that follows from it (paper, section 3).

The scores ("noise", because the paper's are) decide everything: the patches of the smallest are
kept. A strategy is nothing but a way to draw them. Whoever passes the same noise gets the same
mask, in the original implementation too.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mae_jax.errors import UserError
from mae_jax.registry import Registry, is_path

BLOCK_LEAST = 16 / 196
"""The smallest rectangle of block-wise masking, as a share of the patches: BEiT's 16 of 14 x 14.
Only where less is still to be hidden is it smaller."""
BLOCK_ASPECT = (0.3, 1 / 0.3)
"""Height over width of its rectangles, where they fit."""


class Masking(NamedTuple):
    """Which of N patches are kept, for each of B examples."""

    ids_keep: jax.Array
    """int32 [B, K]: the patches that the encoder sees, in the order it sees them."""
    ids_restore: jax.Array
    """int32 [B, N]: where each patch lies in the sequence of kept, then hidden patches."""
    mask: jax.Array
    """bool [B, N]: True where a patch is hidden."""


def num_kept(num_patches: int, ratio: float, *, may_hide_none: bool = False) -> int:
    """The number of visible patches, K = floor(N * (1 - ratio)), free of float error.

    Args:
      num_patches: N.
      ratio: share to hide.
      may_hide_none: whether K = N will do, because the loss is not that of hidden patches alone.

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
            f'mask.ratio={ratio} hides none of the {num_patches} patches, and the loss is that '
            "of the hidden ones: choose a larger mask.ratio, or target.loss_on='all'."
        )
    return kept


def _random(key: jax.Array, batch_size: int, grid: tuple[int, int], num_kept: int) -> jax.Array:
    """Every patch is hidden with the same probability ("random sampling", the paper's own)."""
    return jax.random.uniform(key, (batch_size, grid[0] * grid[1]), jnp.float32)


def _grid(key: jax.Array, batch_size: int, grid: tuple[int, int], num_kept: int) -> jax.Array:
    """One of every 2 x 2 patches is kept, the same of all in an image ("grid-wise sampling").

    Which of the four is each image's own draw, so that over the images no place is always hidden.
    """
    if grid[0] % 2 or grid[1] % 2 or 4 * num_kept != grid[0] * grid[1]:
        raise UserError(
            "mask.strategy='grid' keeps one of every 2 x 2 patches: it needs mask.ratio=0.75 and "
            f'sides of an even number of patches; {num_kept} of {grid[0]} x {grid[1]} were to '
            'stay visible.'
        )
    noise = _random(key, batch_size, grid, num_kept)
    corner = jax.random.randint(jax.random.fold_in(key, 1), (batch_size, 2), 0, 2)
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    kept = (row % 2 == corner[:, :1]) & (column % 2 == corner[:, 1:])
    return _hidden_above(~kept, noise, noise)


def _block(key: jax.Array, batch_size: int, grid: tuple[int, int], num_kept: int) -> jax.Array:
    """Large rectangles are hidden ("block-wise sampling", as BEiT, arXiv 2106.08254, algorithm 1).

    Rectangles are drawn one after the other until enough is hidden, each up to as large as what is
    still to be (or as the smallest, where less is): what the last one covers beyond the number is
    left visible, from its top.
    """
    num_hidden = grid[0] * grid[1] - num_kept
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])

    def of_one(key):
        def add(state):
            number, covered_by = state
            left = num_hidden - jnp.sum(covered_by >= 0)
            top, x, height, width = _rectangle(jax.random.fold_in(key, number), grid, left)
            inside = (row >= top) & (row < top + height) & (column >= x) & (column < x + width)
            return number + 1, jnp.where(inside & (covered_by < 0), number, covered_by)

        def unfinished(state):
            return jnp.sum(state[1] >= 0) < num_hidden

        nowhere = jnp.full(row.shape, -1)
        number, covered_by = jax.lax.while_loop(unfinished, add, (0, nowhere))
        return covered_by, 1 - (covered_by + 1) / (number + 1)  # what is drawn first is largest

    covered_by, order = jax.vmap(of_one)(jax.random.split(jax.random.fold_in(key, 1), batch_size))
    return _hidden_above(covered_by >= 0, order, _random(key, batch_size, grid, num_kept))


def _rectangle(
    key: jax.Array, grid: tuple[int, int], left: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Top row, first column, height and width of a rectangle that lies within the grid.

    Its area is uniform between the smallest and `left`, whichever is larger; its aspect log-uniform
    over what fits.
    """
    rows, columns = grid
    area_key, aspect_key, top_key, x_key = jax.random.split(key, 4)
    least = max(rows * columns * BLOCK_LEAST, 1.0)
    area = jax.random.uniform(
        area_key, minval=jnp.minimum(least, left), maxval=jnp.maximum(least, left)
    )
    high = jnp.minimum(BLOCK_ASPECT[1], rows**2 / area)
    low = jnp.minimum(high, jnp.maximum(BLOCK_ASPECT[0], area / columns**2))
    log_aspect = jax.random.uniform(aspect_key, minval=jnp.log(low), maxval=jnp.log(high))
    height = jnp.clip(jnp.round(jnp.sqrt(area * jnp.exp(log_aspect))), 1, rows).astype(int)
    width = jnp.clip(jnp.round(jnp.sqrt(area / jnp.exp(log_aspect))), 1, columns).astype(int)
    top = jax.random.randint(top_key, (), 0, rows - height + 1)
    x = jax.random.randint(x_key, (), 0, columns - width + 1)
    return top, x, height, width


def _hidden_above(hidden: jax.Array, of_hidden: jax.Array, of_kept: jax.Array) -> jax.Array:
    """Scores in [0, 1): those of hidden patches in the upper half, of the others in the lower."""
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

    def draw_noise(self, key: jax.Array, batch_size: int, grid: tuple[int, int]) -> jax.Array:
        """Draws noise in [0, 1), float32 [B, N], independently for each example.

        Args:
          key: for the whole batch.
          batch_size: B.
          grid: rows and columns of patches, N in all.

        Raises:
          UserError: the strategy is unknown, or cannot keep this number of patches.
        """
        draw = STRATEGIES.get(self.strategy, may_import=False)
        return draw(key, batch_size, grid, self.num_kept(grid[0] * grid[1]))

    def mask(self, noise: jax.Array) -> Masking:
        """Keeps the patches of smallest noise; see `masking_from_noise`."""
        return masking_from_noise(noise, self.num_kept(noise.shape[1]))


def make_masking(
    ratio: float, strategy: str, *, may_hide_none: bool = False, may_import: bool = True
) -> MaskingRule:
    """Makes the masking of a model.

    Args:
      ratio, strategy, may_hide_none: fields of `MaskingRule`.
      may_import: whether a strategy 'module:function' is imported; if not, and it is not known
        yet, the model takes the noise that it is given, and draws none.

    Raises:
      UserError: the strategy is unknown or cannot be imported.
    """
    if may_import or not is_path(strategy):
        STRATEGIES.get(strategy)
    return MaskingRule(ratio, strategy, may_hide_none)


def masking_from_noise(noise: jax.Array, num_kept: int) -> Masking:
    """Keeps the `num_kept` patches of smallest noise of each example; ties go to the first patch.

    Args:
      noise: float [B, N].
      num_kept: K, a Python integer, so that shapes are static.
    """
    ids_shuffle = jnp.argsort(noise, axis=1, stable=True).astype(jnp.int32)
    ids_restore = jnp.argsort(ids_shuffle, axis=1).astype(jnp.int32)
    return Masking(ids_shuffle[:, :num_kept], ids_restore, ids_restore >= num_kept)
