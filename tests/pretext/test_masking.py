import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.errors import UserError
from mae_jax.pretext.masking import (
    STRATEGIES,
    MaskingRule,
    make_masking,
    masking_from_noise,
    num_kept,
)


def test_the_patches_of_smallest_noise_are_kept_in_order_of_noise():
    noise = np.array([[0.3, 0.1, 0.9, 0.2], [0.0, 0.7, 0.6, 0.5]], np.float32)
    masking = masking_from_noise(noise, 2)
    np.testing.assert_array_equal(masking.ids_keep, [[1, 3], [0, 3]])
    np.testing.assert_array_equal(masking.mask, [[1, 0, 1, 0], [0, 1, 1, 0]])
    np.testing.assert_array_equal(masking.ids_restore, [[2, 0, 3, 1], [0, 3, 2, 1]])
    assert masking.ids_keep.dtype == masking.ids_restore.dtype == np.int32
    assert masking.mask.dtype == bool


def test_equal_noise_keeps_the_first_patches():
    noise = np.zeros((1, 50), np.float32)
    np.testing.assert_array_equal(masking_from_noise(noise, 5).ids_keep, [[0, 1, 2, 3, 4]])


def test_restore_puts_kept_then_hidden_patches_back():
    noise = np.random.default_rng(0).uniform(size=(3, 20)).astype(np.float32)
    masking = masking_from_noise(noise, 6)
    for keep, restore, mask in zip(*map(np.asarray, masking), strict=True):
        shuffled = np.concatenate([keep, np.full(14, -1)])  # -1: a mask token
        restored = shuffled[restore]
        np.testing.assert_array_equal(restored, np.where(mask, -1, np.arange(20)))


def test_each_example_hides_patches_of_its_own_and_as_many():
    noise = MaskingRule(0.75).draw_noise(jax.random.key(0), 8, (14, 14))
    assert noise.shape == (8, 196) and noise.dtype == np.float32
    assert noise.min() >= 0 and noise.max() < 1
    mask = np.asarray(masking_from_noise(noise, 49).mask)
    np.testing.assert_array_equal(mask.sum(axis=1), 147)
    assert len({row.tobytes() for row in mask}) == 8


DRAWS = 10_000


@functools.cache
def masks(strategy, grid, ratio):
    """bool [10,000, rows, columns], by the one way from scores to masks."""
    rule = MaskingRule(ratio, strategy)

    @jax.jit
    def draw():
        noise = rule.draw_noise(jax.random.key(0), DRAWS, grid)
        return noise, rule.mask(noise).mask

    noise, mask = map(np.asarray, draw())
    assert noise.dtype == np.float32 and noise.min() >= 0 and noise.max() < 1
    return mask.reshape(DRAWS, *grid)


@pytest.mark.parametrize(
    ('strategy', 'grid', 'ratio'),
    [
        ('random', (6, 12), 0.75),
        ('block', (14, 14), 0.5),
        ('block', (6, 12), 0.75),
        ('grid', (6, 12), 0.75),
    ],
)
def test_each_strategy_hides_exactly_the_stated_number(strategy, grid, ratio):
    hidden = masks(strategy, grid, ratio).sum(axis=(1, 2))
    np.testing.assert_array_equal(hidden, math.prod(grid) * ratio)


@pytest.mark.parametrize('strategy', ['random', 'grid'])
def test_no_position_is_hidden_more_often_than_another(strategy):
    share = masks(strategy, (6, 12), 0.75).mean(axis=0)
    np.testing.assert_allclose(share, 0.75, atol=5 * (0.75 * 0.25 / DRAWS) ** 0.5)


def test_random_masks_hide_any_two_positions_together_equally_often():
    hidden = masks('random', (4, 6), 0.5).reshape(DRAWS, 24).astype(float)
    together = (hidden.T @ hidden / DRAWS)[~np.eye(24, dtype=bool)]
    np.testing.assert_allclose(together, 12 / 24 * 11 / 23, atol=5 * (0.24 * 0.76 / DRAWS) ** 0.5)


def test_grid_masks_keep_the_same_one_of_every_two_by_two():
    kept = ~masks('grid', (6, 12), 0.75)
    cells = kept.reshape(DRAWS, 3, 2, 6, 2).transpose(0, 1, 3, 2, 4).reshape(DRAWS, 18, 4)
    assert (cells == cells[:, :1]).all()
    np.testing.assert_array_equal(cells[:, 0].sum(axis=-1), 1)
    np.testing.assert_allclose(cells[:, 0].mean(axis=0), 0.25, atol=0.025)


def blocks_by_hand(rng, grid, num_hidden):
    """One mask of block-wise sampling, in loops."""
    rows, columns = grid
    mask = np.zeros(grid, bool)
    while mask.sum() < num_hidden:
        left, least = num_hidden - mask.sum(), rows * columns * 16 / 196
        area = rng.uniform(min(least, left), max(least, left))
        high = min(1 / 0.3, rows**2 / area)
        low = min(max(0.3, area / columns**2), high)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        height = min(max(round(math.sqrt(area * aspect)), 1), rows)
        width = min(max(round(math.sqrt(area / aspect)), 1), columns)
        top, x = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        positions = [(y, c) for y in range(top, top + height) for c in range(x, x + width)]
        new = [position for position in positions if not mask[position]]
        for position in new[max(len(new) - left, 0) :]:  # the last is cut from its top
            mask[position] = True
    return mask


@pytest.mark.parametrize(('grid', 'ratio'), [((14, 14), 0.5), ((6, 12), 0.75)])
def test_blocks_cover_the_image_as_those_drawn_in_loops_do(grid, ratio):
    rng, hidden = np.random.default_rng(0), round(math.prod(grid) * ratio)
    by_hand = np.array([blocks_by_hand(rng, grid, hidden) for _ in range(1500)])
    actual = masks('block', grid, ratio)
    np.testing.assert_allclose(actual.mean(axis=0), by_hand.mean(axis=0), atol=0.06)
    assert np.ptp(actual.mean(axis=0)) > 0.5  # the middle far more often than a corner
    for axis in (1, 2):  # as long borders between hidden and visible
        edges = [
            np.abs(np.diff(m.astype(int), axis=axis)).sum(axis=(1, 2)) for m in (actual, by_hand)
        ]
        np.testing.assert_allclose(edges[0].mean(), edges[1].mean(), rtol=0.05)
        np.testing.assert_allclose(edges[0].std(), edges[1].std(), rtol=0.15)


def test_blocks_are_rectangles_of_several_shapes():
    """A rectangle is wide or high; the drawn ones are seen where one alone hides all."""
    grid = (14, 14)
    shapes = set()
    for mask in masks('block', grid, 0.5):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if box[1:].all():  # the first row may be cut
            shapes.add(box.shape)
    assert {height > width for height, width in shapes} == {True, False}
    aspects = [height / width for height, width in shapes]
    assert 0.3 <= min(aspects) < 0.6 and 1.7 < max(aspects) <= 3.4


def test_blocks_leave_fewer_borders_than_random_masks():
    def borders(strategy):
        actual = masks(strategy, (14, 14), 0.5).astype(int)
        return np.abs(np.diff(actual, axis=1)).sum() / DRAWS

    assert borders('block') < borders('random') / 4


@pytest.mark.parametrize('grid', [(1, 40), (30, 2)])
def test_blocks_fit_into_narrow_grids(grid):
    np.testing.assert_array_equal(masks('block', grid, 0.5).sum(axis=(1, 2)), math.prod(grid) / 2)


@pytest.mark.parametrize(
    ('grid', 'ratio'), [((14, 14), 0.5), ((7, 14), 0.75), ((14, 7), 0.75), ((14, 14), 0.74)]
)
def test_a_grid_mask_of_another_ratio_or_odd_sides_is_refused(grid, ratio):
    with pytest.raises(UserError, match=r"mask\.strategy='grid' .*mask\.ratio=0\.75 .*even"):
        masks('grid', grid, ratio)


# The exact floor: 1 - 0.9 and 1 - 0.8 in binary lie just below a tenth and a fifth.
@pytest.mark.parametrize(
    'num_patches, ratio, kept',
    [(196, 0.75, 49), (10, 0.9, 1), (100, 0.9, 10), (5, 0.8, 1), (256, 0.6, 102), (6, 0.75, 1)],
)
def test_the_number_kept_is_the_floor_without_float_error(num_patches, ratio, kept):
    assert num_kept(num_patches, ratio) == kept


@pytest.mark.parametrize('ratio', [-0.1, 1.0, 1.5, float('nan')])
def test_a_ratio_outside_the_range_is_refused(ratio):
    with pytest.raises(UserError, match=r'mask\.ratio'):
        num_kept(196, ratio)


def test_a_mask_with_nothing_visible_or_nothing_hidden_is_refused():
    with pytest.raises(UserError, match=r'mask\.ratio=0\.9 leaves none of the 4 patches visible'):
        num_kept(4, 0.9)
    with pytest.raises(UserError, match=r'mask\.ratio=0\.0 hides none'):
        num_kept(4, 0.0)


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    message = r"mask\.strategy='checkers'.*random \| block \| grid.*, or module:function"
    with pytest.raises(UserError, match=message):
        make_masking(0.75, 'checkers')
    with pytest.raises(UserError, match=message):
        MaskingRule(0.75, 'checkers').draw_noise(jax.random.key(0), 2, (2, 2))


def left_to_right(key, batch_size, grid, num_kept):
    """Hides the right part of every image."""
    return jnp.tile(jnp.linspace(0, 1, grid[1], endpoint=False), (batch_size, grid[0]))


def test_a_registered_strategy_masks_under_its_name():
    STRATEGIES.register('left_to_right', left_to_right)
    rule = make_masking(0.5, 'left_to_right')
    mask = rule.mask(rule.draw_noise(jax.random.key(0), 2, (3, 4))).mask
    np.testing.assert_array_equal(np.reshape(mask, (2, 3, 4)), [[[0, 0, 1, 1]] * 3] * 2)


def test_a_strategy_of_a_loaded_model_is_not_imported(user_module):
    name = f'{user_module("raise SystemExit")}:draw'
    rule = make_masking(0.75, name, may_import=False)
    with pytest.raises(
        UserError, match=f'mask.strategy=.{name}. is a mask strategy that is not reg'
    ):
        rule.draw_noise(jax.random.key(0), 2, (2, 2))
