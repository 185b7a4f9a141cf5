import jax
import numpy as np
import pytest

from mae_jax.errors import UserError
from mae_jax.pretext.masking import draw_noise, masking_from_noise, num_kept


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
    noise = draw_noise(jax.random.key(0), 8, 196)
    assert noise.shape == (8, 196) and noise.dtype == np.float32
    assert noise.min() >= 0 and noise.max() < 1
    mask = np.asarray(masking_from_noise(noise, 49).mask)
    np.testing.assert_array_equal(mask.sum(axis=1), 147)
    assert len({row.tobytes() for row in mask}) == 8


def test_every_patch_is_hidden_equally_often():
    mask = np.asarray(masking_from_noise(draw_noise(jax.random.key(1), 4000, 16), 4).mask)
    np.testing.assert_allclose(mask.mean(axis=0), 0.75, atol=0.03)


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
    with pytest.raises(UserError, match=r"mask\.strategy='checkers'.*random"):
        draw_noise(jax.random.key(0), 2, 4, 'checkers')
