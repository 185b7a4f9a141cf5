import numpy as np
import pytest

from mae_jax.errors import UserError
from mae_jax.models.patches import grid_size, patchify, unpatchify


def test_patches_are_row_major_with_row_column_channel_inside():
    images = np.random.default_rng(0).normal(size=(2, 6, 9, 4)).astype(np.float32)
    patches = np.asarray(patchify(images, 3))
    assert patches.shape == (2, 6, 36)
    for n in range(6):
        top, left = 3 * (n // 3), 3 * (n % 3)
        pixels = [(top + r, left + c) for r in range(3) for c in range(3)]
        by_hand = [images[:, row, column, ch] for row, column in pixels for ch in range(4)]
        np.testing.assert_array_equal(patches[:, n], np.stack(by_hand, axis=1))


@pytest.mark.parametrize('shape, patch_size', [((2, 8, 12, 3), 4), ((1, 6, 2, 1), 2)])
def test_unpatchify_undoes_patchify(shape, patch_size):
    images = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    patches = patchify(images, patch_size)
    assert patches.dtype == np.uint8
    np.testing.assert_array_equal(unpatchify(patches, patch_size, shape[1:3]), images)


def test_grid_is_rows_then_columns():
    assert grid_size((32, 48), 16) == (2, 3)


@pytest.mark.parametrize('image_size', [(30, 32), (32, 30)])
def test_a_patch_that_does_not_divide_the_image_is_refused(image_size):
    with pytest.raises(UserError, match=r'image_size=.*model\.patch_size'):
        grid_size(image_size, 16)
