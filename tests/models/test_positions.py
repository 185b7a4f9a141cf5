import numpy as np
import pytest
import vitmae
from helpers.commands import ROOT

from mae_jax.errors import UserError
from mae_jax.models.positions import resize_positions, sincos_2d

GOLDEN = ROOT / 'tests/golden' / 'optimizers.npz'


@pytest.mark.parametrize('dim, grid', [(16, (4, 4)), (12, (2, 7)), (8, (5, 3))])
def test_table_follows_the_formula(dim, grid):
    table = sincos_2d(dim, grid)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, vitmae.positions(dim, grid), atol=1e-7)


def test_a_step_to_the_right_changes_the_first_half_alone():
    table = sincos_2d(16, (3, 5))[0, 1:].reshape(3, 5, 16)
    assert (table[0, 0, :8] != table[0, 1, :8]).any()
    np.testing.assert_array_equal(table[0, 0, 8:], table[0, 1, 8:])
    np.testing.assert_array_equal(table[0, 0, :8], table[1, 0, :8])


def test_the_cls_token_has_no_position():
    np.testing.assert_array_equal(sincos_2d(8, (2, 2))[:, 0], np.zeros((1, 8)))
    assert sincos_2d(8, (2, 2), cls_token=False).shape == (1, 4, 8)


def test_a_width_that_4_does_not_divide_is_refused():
    with pytest.raises(UserError, match='4 divides'):
        sincos_2d(10, (2, 2))


@pytest.mark.parametrize(
    'case, old, new', [('square', (14, 14), (18, 18)), ('rectangle', (7, 5), (3, 9))]
)
def test_a_table_is_resized_as_pytorch_does(case, old, new):
    with np.load(GOLDEN) as golden:
        table, resized = (golden[f'positions/{case}/{side}'] for side in ('table', 'resized'))
    ours = resize_positions(table, old, new)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, resized, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(ours[:, 0], table[:, 0])  # of the cls token


def test_a_constant_stays_constant_and_the_same_grid_changes_nothing():
    ones = np.ones((1, 1 + 12, 4), np.float32)
    np.testing.assert_allclose(resize_positions(ones, (3, 4), (8, 2)), 1, atol=1e-6)
    table = sincos_2d(8, (3, 4))
    np.testing.assert_array_equal(resize_positions(table, (3, 4), (3, 4)), table)


@pytest.mark.parametrize('grid', [(3, 5), (4, 4)])
def test_a_table_of_another_grid_is_refused(grid):
    with pytest.raises(UserError, match=rf'\[1, 13, 8\] .* {grid[0]} x {grid[1]} patches'):
        resize_positions(sincos_2d(8, (3, 4)), grid, (6, 6))
