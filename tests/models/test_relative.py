"""Relative positions against loops over their definitions, and their resizing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline

from mae_jax.errors import UserError
from mae_jax.models.relative import (
    beit_bias,
    resize_offsets,
    resize_table,
    table_rows,
    vitdet_bias,
)
from mae_jax.models.windows import from_windows, to_windows

GRID = (2, 3)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def places(grid):
    return [(row, column) for row in range(grid[0]) for column in range(grid[1])]


def beit_row(i: int, j: int, cls_token: bool) -> int:
    """Of a table, for a query and a key: by vertical, then by horizontal offset, then cls."""
    rows = 3 * 5 + 3
    if cls_token and not (i and j):
        return rows - 1 if i == j else rows - 3 if i == 0 else rows - 2  # query, key
    (row, column), (other_row, other_column) = (places(GRID)[n - cls_token] for n in (i, j))
    return (row - other_row + 1) * 5 + column - other_column + 2


@pytest.mark.parametrize('cls_token', [True, False])
def test_a_beit_table_has_a_row_for_each_offset_and_three_for_the_cls_token(cls_token):
    table, count = draw(table_rows(GRID, cls_token), 2), 6 + cls_token
    rows = np.array([[beit_row(i, j, cls_token) for j in range(count)] for i in range(count)])
    assert set(rows.flat) == set(range(len(table)))
    bias = beit_bias(table, GRID, cls_token)
    np.testing.assert_array_equal(bias, np.moveaxis(table[rows], 2, 0)[None])


def test_the_gradient_of_a_beit_table_is_the_sum_over_the_queries_and_keys_of_a_row():
    table, factors = draw(table_rows(GRID), 2), draw(2, 7, 7)
    gradient = jax.grad(lambda table: (beit_bias(table, GRID)[0] * factors).sum())(table)
    expected = np.zeros_like(table)
    for i, j in np.ndindex(7, 7):
        expected[beit_row(i, j, True)] += factors[:, i, j]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_vitdets_bias_is_the_query_times_the_sum_of_both_offsets():
    queries, down, right = draw(2, 6, 3, 4), draw(3, 4), draw(5, 4) + 1
    expected = np.zeros((2, 3, 6, 6))
    for i, (row, column) in enumerate(places(GRID)):
        for j, (other_row, other_column) in enumerate(places(GRID)):
            offset = down[row - other_row + 1] + right[column - other_column + 2]
            expected[:, :, i, j] = queries[:, i] @ offset
    actual = vitdet_bias(jnp.asarray(queries), down, right, GRID)
    product = np.einsum('bqhe,ke->bhqk', *actual)
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_vitdets_bias_does_not_scatter():
    queries, down, right = draw(2, 6, 3, 4), draw(3, 4), draw(5, 4)

    def squares(*embeddings):
        return (vitdet_bias(jnp.asarray(queries), *embeddings, GRID).queries ** 2).sum()

    gradient = jax.grad(squares, (0, 1))
    assert 'scatter' not in jax.jit(gradient).lower(down, right).as_text()


def beits_distances(source: int, target: int) -> list[float]:
    """Where BEiT places the offsets of a side of a table (unilm, run_class_finetuning.py)."""
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        if sum(q**i for i in range(source // 2)) > target // 2:
            right = q
        else:
            left = q
    distances, current = [], 1.0
    for i in range(source // 2):
        distances.append(current)
        current += q ** (i + 1)
    return [-d for d in reversed(distances)] + [0.0] + distances


@pytest.mark.parametrize('new', [(6, 6), (3, 3), (5, 9)])
def test_a_table_is_resized_on_beits_geometric_grid(new):
    """FITPACK's spline is the one of SciPy's interp2d, which BEiT uses and SciPy has no more."""
    old = (4, 4)
    table = draw(table_rows(old), 2)
    resized = resize_table(table, old, new)
    sides = [2 * n - 1 for n in new]
    x = [beits_distances(7, side) for side in sides]
    at = [np.arange(-(side // 2), side // 2 + 1) for side in sides]
    for head in range(2):
        spline = RectBivariateSpline(*x, table[:-3, head].reshape(7, 7), s=0)
        expected = spline(*at).reshape(-1)
        np.testing.assert_allclose(resized[:-3, head], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(resized[-3:], table[-3:])
    assert resized.dtype == np.float32


def test_near_offsets_keep_their_meaning_on_a_larger_grid():
    table = draw(table_rows((7, 7)), 1)
    resized = resize_table(table, (7, 7), (12, 12))
    old, new = table[:-3].reshape(13, 13), resized[:-3].reshape(23, 23)
    np.testing.assert_allclose(new[10:13, 10:13], old[5:8, 5:8], atol=1e-5)
    np.testing.assert_allclose(
        new[[0, 0, -1], [0, -1, -1]], old[[0, 0, -1], [0, -1, -1]], atol=1e-3
    )


def test_a_table_of_the_same_grid_stays_to_the_bit():
    table = draw(table_rows((4, 4)), 2)
    np.testing.assert_array_equal(resize_table(table, (4, 4), (4, 4)), table)


@pytest.mark.parametrize('old', [(1, 1), (1, 4), (2, 2)])
def test_small_tables_are_resized_too(old):
    resized = resize_table(np.ones((table_rows(old, False), 2), np.float32), old, (3, 3))
    np.testing.assert_allclose(resized, np.ones((25, 2)), rtol=1e-6)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(UserError, match=r'\[52, 2\] does not belong to 5 x 5 patches'):
        resize_table(draw(table_rows((4, 4)), 2), (5, 5), (6, 6))


def test_offsets_are_resized_linearly_between_centres():
    embeddings = np.array([[0.0], [3.0], [6.0]], np.float32)
    np.testing.assert_allclose(resize_offsets(embeddings, 3)[:, 0], [0, 1.2, 3, 4.8, 6], atol=1e-6)
    np.testing.assert_array_equal(resize_offsets(embeddings, 2), embeddings)
    np.testing.assert_allclose(resize_offsets(embeddings, 1), [[3.0]])


@pytest.mark.parametrize(('grid', 'count'), [((4, 6), 6), ((3, 5), 6), ((1, 1), 1)])
def test_windows_hold_squares_of_patches_and_zeros(grid, count):
    tokens = draw(2, grid[0] * grid[1], 4)
    windows = to_windows(jnp.asarray(tokens), grid, 2)
    assert windows.shape == (2 * count, 4, 4)
    maps = tokens.reshape(2, *grid, 4)
    padded = np.zeros((2, 8, 8, 4), np.float32)
    padded[:, : grid[0], : grid[1]] = maps
    across = -(-grid[1] // 2)
    for i, window in enumerate(windows):
        image, place = divmod(i, count)
        row, column = (2 * x for x in divmod(place, across))
        expected = padded[image, row : row + 2, column : column + 2].reshape(4, 4)
        np.testing.assert_array_equal(window, expected)
    np.testing.assert_array_equal(from_windows(windows, grid, 2), tokens)
