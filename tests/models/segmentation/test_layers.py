"""Layers of maps, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models.segmentation.layers import halve, pool, resize


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('size', [(16, 16), (5, 7), (4, 3), (1, 2)])
@pytest.mark.parametrize('bins', [1, 2, 3, 6])
def test_bins_start_at_the_floor_and_end_at_the_ceiling(size, bins):
    """As PyTorch documents its adaptive pooling: uneven and overlapping where it must be."""
    x = draw(2, *size, 3)
    expected = np.empty((2, bins, bins, 3))
    for row in range(bins):
        for column in range(bins):
            rows, columns = (
                slice(i * n // bins, -(-(i + 1) * n // bins))
                for i, n in zip((row, column), size, strict=True)
            )
            expected[:, row, column] = x[:, rows, columns].mean(axis=(1, 2))
    np.testing.assert_allclose(pool(x, bins), expected, atol=1e-6)


def test_halving_takes_the_largest_of_four_and_leaves_an_odd_border_out():
    x = draw(2, 5, 6, 3)
    expected = np.stack([
        [x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2)) for j in range(3)]
        for i in range(2)
    ])  # fmt: skip
    np.testing.assert_array_equal(halve(x), expected.transpose(2, 0, 1, 3))


def test_the_gradient_of_halving_goes_to_the_first_of_the_largest():
    x = np.array([[1.0, 3.0, 2.0, 2.0], [3.0, 0.0, 2.0, 2.0]])[None, ..., None]
    gradient = jax.grad(lambda x: (halve(x) * jnp.array([5.0, 7.0])[:, None]).sum())(x)
    np.testing.assert_array_equal(gradient[0, ..., 0], [[0, 5, 7, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(('old', 'new'), [(4, 10), (6, 4), (3, 1), (5, 5)])
def test_resizing_interpolates_between_the_centres_of_two_pixels(old, new):
    """Whether it enlarges or shrinks, and repeats the border."""
    x = draw(1, old, 1, 2)
    expected = []
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        low = int(place)
        high = min(low + 1, old - 1)
        expected.append(x[0, low] * (1 - (place - low)) + x[0, high] * (place - low))
    np.testing.assert_allclose(resize(x, (new, 1))[0], expected, atol=1e-6)
