import numpy as np
import pytest

from mae_jax.errors import UserError
from mae_jax.pretext.targets import get_target, patch_statistics


def test_normalised_pixels_have_the_unbiased_variance_with_eps_inside_the_root():
    # Nearly flat patches of few values: there ddof and the place of eps are plain to see.
    patches = np.random.default_rng(0).normal(size=(2, 3, 4)) * np.array([[[1.0], [1e-3], [0.0]]])
    expected = np.empty_like(patches)
    for index in np.ndindex(2, 3):
        values = patches[index]
        mean = sum(values) / 4
        variance = sum((v - mean) ** 2 for v in values) / (4 - 1)
        expected[index] = (values - mean) / (variance + 1e-6) ** 0.5
    target = get_target('normalized_pixel')(patches.astype(np.float32))
    np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-5)


def test_the_statistics_undo_the_normalisation():
    patches = np.random.default_rng(0).normal(3, 2, size=(2, 5, 12)).astype(np.float32)
    mean, std = patch_statistics(patches)
    assert mean.shape == std.shape == (2, 5, 1)
    target = get_target('normalized_pixel')(patches)
    np.testing.assert_allclose(target * std + mean, patches, rtol=1e-5, atol=1e-5)


def test_pixels_are_themselves():
    patches = np.ones((1, 2, 3), np.float32)
    assert get_target('pixel')(patches) is patches


def test_an_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"target\.name='hog'.*pixel \| normalized_pixel"):
        get_target('hog')


def test_patches_of_one_value_cannot_be_normalised():
    with pytest.raises(UserError, match=r'model\.patch_size'):
        get_target('normalized_pixel')(np.ones((1, 4, 1), np.float32))
