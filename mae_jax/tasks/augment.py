"""Augments normalised batches of fine-tuning on the device: erasing, soft targets, mixing.

Each step is a draw of a few numbers (`draw_erasing`, `draw_mix`) and a pure application of them, on
the whole global batch: a row's draw depends on the key and the row's place alone, never on how the
batch is split over devices. The definitions are those of timm, which the paper's code uses.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from mae_jax.errors import UserError

Array = jax.Array | np.ndarray
Scalar = float | int | Float[Array, '']
GROUP = 32
"""Rows that share one draw of `mix`: the original draws once per process, whose batch is 32."""

ATTEMPTS = 10
"""Boxes that `draw_erasing` tries for an image before it leaves it alone."""


class Box(NamedTuple):
    """Pixels [top, bottom) x [left, right), each int32 [n]; an empty box stands for none."""

    top: Array
    bottom: Array
    left: Array
    right: Array

    @property
    def area(self) -> Int[Array, ' n']:
        """Returns the area of each box in pixels, int32 [n]."""
        return (self.bottom - self.top) * (self.right - self.left)

    def mask(self, size: tuple[int, int]) -> Bool[Array, 'n H W']:
        """Returns a mask, bool [n,H,W], True inside the box."""
        row, column = jnp.arange(size[0]), jnp.arange(size[1])
        rows = (row >= self.top[:, None]) & (row < self.bottom[:, None])
        columns = (column >= self.left[:, None]) & (column < self.right[:, None])
        return rows[:, :, None] & columns[:, None, :]


class Mix(NamedTuple):
    """Parameters by which the rows of each of n groups are mixed with their partners."""

    lam: Array
    """float32 [n]: the share of a row in its target and, without a box, in its pixels."""
    box: Box
    """For CutMix: the pixels that are the partner's. Empty for mixup."""


def erase(
    images: Float[Array, 'B H W C'],
    key: jax.Array,
    *,
    probability: Scalar,
    min_area: Scalar = 0.02,
    max_area: Scalar = 1 / 3,
    min_aspect: Scalar = 0.3,
) -> Float[Array, 'B H W C']:
    """Fills a random box of some images with noise (random erasing, arXiv 1708.04896).

    Args:
      images: float [B,H,W,C], normalised: the noise is N(0, 1) for every pixel and channel.
      key: of this step.
      probability: of an image to be erased.
      min_area, max_area: range of the box's share of the image.
      min_aspect: least height / width; the greatest is its inverse.

    Raises:
      UserError: `probability` is not in [0, 1].
    """
    if not 0 <= probability <= 1:
        raise UserError(f'The probability of erasing, {probability}, must lie in [0, 1].')
    if probability == 0:
        return images
    box_key, noise_key = jax.random.split(key)
    box = draw_erasing(
        box_key,
        len(images),
        images.shape[1:3],
        probability=probability,
        min_area=min_area,
        max_area=max_area,
        min_aspect=min_aspect,
    )
    return fill(images, box, jax.random.normal(noise_key, images.shape, images.dtype))


def draw_erasing(
    key: jax.Array,
    rows: int,
    size: tuple[int, int],
    *,
    probability: Scalar,
    min_area: Scalar,
    max_area: Scalar,
    min_aspect: Scalar,
) -> Box:
    """Draws a box for each of `rows` images of `size` (H, W): the first attempt that fits.

    The share of the area is uniform, the aspect ratio log-uniform, and the place uniform over all
    that hold the whole box.
    """
    chance_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
    limit = -math.log(min_aspect)
    area = jax.random.uniform(area_key, (rows, ATTEMPTS), minval=min_area, maxval=max_area)
    area = area * (size[0] * size[1])
    aspect = jnp.exp(jax.random.uniform(aspect_key, area.shape, minval=-limit, maxval=limit))
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)

    fits = (heights < size[0]) & (widths < size[1])
    first = jnp.argmax(fits, axis=1, keepdims=True)
    chosen = jax.random.uniform(chance_key, (rows,)) < probability
    erased = chosen & fits.any(axis=1)
    height = jnp.where(erased, jnp.take_along_axis(heights, first, axis=1)[:, 0], 0)
    width = jnp.where(erased, jnp.take_along_axis(widths, first, axis=1)[:, 0], 0)
    # `randint` leaves its upper end out, and the last place that holds the box is allowed.
    top = jax.random.randint(top_key, (rows,), 0, size[0] - height + 1)
    left = jax.random.randint(left_key, (rows,), 0, size[1] - width + 1)
    return Box(top, top + height, left, left + width)


def fill(
    images: Float[Array, 'B H W C'], box: Box, noise: Float[Array, 'B H W C']
) -> Float[Array, 'B H W C']:
    """Replaces what lies inside `box` [B] of `images` [B,H,W,C] by `noise` [B,H,W,C]."""
    return jnp.where(box.mask(images.shape[1:3])[..., None], noise, images)


def soft_targets(
    labels: Int[Array, ' B'], num_classes: int, smoothing: Scalar
) -> Float[Array, 'B classes']:
    """Turns labels, int [B], into targets, float32 [B,num_classes], `smoothing` spread over all.

    Every class gets smoothing / num_classes, and the label's own 1 - smoothing more.
    """
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes


def mix(
    images: Float[Array, 'B H W C'],
    targets: Float[Array, 'B classes'],
    key: jax.Array,
    *,
    mixup: Scalar,
    cutmix: Scalar,
    switch_probability: Scalar,
    group: int = GROUP,
) -> tuple[Float[Array, 'B H W C'], Float[Array, 'B classes']]:
    """Mixes each row with the mirrored one of its group, by mixup or by CutMix.

    `group` consecutive rows share a draw; a smaller last group is mirrored within itself. Nothing
    is communicated between devices that hold whole groups.

    Args:
      images: float [B,H,W,C].
      targets: float32 [B,classes].
      key: of this step.
      mixup: alpha of mixup (arXiv 1710.09412), lambda ~ Beta(alpha, alpha); 0 switches it off.
      cutmix: alpha of CutMix (arXiv 1905.04899), as for `mixup`. With both 0 nothing is changed.
      switch_probability: of CutMix, where neither is off.

    Raises:
      UserError: an alpha is negative, or `switch_probability` is not in [0, 1].
    """
    if not (0 <= mixup < math.inf and 0 <= cutmix < math.inf):
        raise UserError(f'mixup={mixup} and cutmix={cutmix} must be 0 (off) or positive.')
    if not 0 <= switch_probability <= 1:
        raise UserError(
            f'The probability of CutMix over mixup, {switch_probability}, must lie in [0, 1].'
        )
    if mixup == cutmix == 0:
        return images, targets
    drawn = draw_mix(
        key,
        -(-len(images) // group),
        images.shape[1:3],
        mixup=mixup,
        cutmix=cutmix,
        switch_probability=switch_probability,
    )
    return apply_mix(images, targets, drawn, group)


def draw_mix(
    key: jax.Array,
    groups: int,
    size: tuple[int, int],
    *,
    mixup: Scalar,
    cutmix: Scalar,
    switch_probability: Scalar,
) -> Mix:
    """Draws parameters for each of `groups` groups of images of `size` (H, W); an alpha is > 0."""
    switch_key, lam_key, row_key, column_key = jax.random.split(key, 4)
    if mixup == 0 or cutmix == 0:
        switch_probability = float(mixup == 0)
    is_cutmix = jax.random.uniform(switch_key, (groups,)) < switch_probability
    alpha = jnp.where(is_cutmix, cutmix, mixup)
    lam = jax.random.beta(lam_key, alpha, alpha, dtype=jnp.float32)

    row = jax.random.randint(row_key, (groups,), 0, size[0])
    column = jax.random.randint(column_key, (groups,), 0, size[1])
    box = cutmix_box(lam, row, column, size)
    box = Box(*(jnp.where(is_cutmix, edge, 0) for edge in box))
    # The border cuts boxes off: the targets follow the pixels that are left.
    return Mix(jnp.where(is_cutmix, 1 - box.area / (size[0] * size[1]), lam), box)


def cutmix_box(lam: Array, row: Array, column: Array, size: tuple[int, int]) -> Box:
    """Returns boxes of a share 1 - `lam` of the area around a centre, cut off at the border.

    As in timm today; its release 0.3.2 drops the last row and column of a box of odd length.
    """
    ratio = jnp.sqrt(1 - lam)

    def edges(center: Array, length: int) -> tuple[Array, Array]:
        cut = jnp.floor(length * ratio).astype(jnp.int32)
        return jnp.maximum(center - cut // 2, 0), jnp.minimum(center + (cut + 1) // 2, length)

    return Box(*edges(row, size[0]), *edges(column, size[1]))


def apply_mix(
    images: Float[Array, 'B H W C'],
    targets: Float[Array, 'B classes'],
    drawn: Mix,
    group: int = GROUP,
) -> tuple[Float[Array, 'B H W C'], Float[Array, 'B classes']]:
    """Mixes with given parameters, one for each group of rows; the last may be smaller."""
    # Indexing, not `jnp.repeat`: with that, XLA would split the draws themselves over the devices,
    # and those communicate in every round of the rejection sampling of lambda.
    drawn = jax.tree.map(lambda n: n[jnp.arange(len(images)) // group], drawn)
    lam, box = drawn.lam[:, None, None], drawn.box
    own = jnp.where((box.area > 0)[:, None, None], ~box.mask(images.shape[1:3]), lam)
    return (
        _blend(images, own[..., None].astype(images.dtype), group),
        _blend(targets, drawn.lam[:, None], group),
    )


def _blend(rows: Array, own: Array, group: int) -> Array:
    return rows * own + _mirrored(rows, group) * (1 - own)


def _mirrored(rows: Array, group: int) -> Array:
    """Reverses the order within each `group` rows of [B,...], and within the remainder."""
    whole = len(rows) // group * group
    # A reshape and a flip, not a gather: a flip within a device's rows stays on the device.
    groups = rows[:whole].reshape(-1, group, *rows.shape[1:])
    mirrored = jnp.flip(groups, axis=1).reshape(whole, *rows.shape[1:])
    return mirrored if whole == len(rows) else jnp.concatenate([mirrored, rows[whole:][::-1]])
