"""Principal components of patch features, against NumPy."""

import jax
import numpy as np
import pytest
from helpers.models import make_random_encoder
from helpers.photographs import GRID, PATCH, SHAPE, normalised, photograph

from mae_jax.errors import UserError
from mae_jax.visualization.pca import pca_columns, principal_components


def components_by_hand(features: np.ndarray) -> np.ndarray:
    """Computes those of all patches together; their signs are arbitrary."""
    vectors = features.reshape(-1, features.shape[-1]).astype(np.float64)
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    return (left * values)[:, :3].reshape(*features.shape[:-1], 3)


def test_components_are_those_of_all_images_together():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 3, 5, 8)) * np.arange(1, 9) + rng.normal(size=8)
    actual, expected = principal_components(features), components_by_hand(features)
    assert actual.shape == (4, 3, 5, 3)
    signs = np.sign((actual * expected).sum(axis=(0, 1, 2)))
    np.testing.assert_allclose(actual, expected * signs, atol=1e-8)
    apart = [principal_components(image[None])[0] for image in features]
    assert np.abs(np.abs(np.stack(apart)) - np.abs(actual)).max() > 0.1


def check_colours(drawn: np.ndarray, features: np.ndarray) -> None:
    """Checks that `drawn`, uint8 [B,H,W,3], has the colours of the components of [B,N,D]."""
    assert drawn.shape == (len(features), *SHAPE) and drawn.dtype == np.uint8
    components = components_by_hand(features.reshape(len(features), *GRID, -1))
    for band in range(3):
        values, levels = components[..., band], drawn[:, ::PATCH, ::PATCH, band].astype(int)
        patches = np.kron(levels, np.ones((1, PATCH, PATCH), int))
        np.testing.assert_array_equal(drawn[..., band], patches)
        low, high = np.percentile(values, (1, 99))
        expected = np.clip((values - low) / (high - low), 0, 1) * 255
        assert min(np.abs(x - levels).max() for x in (expected, 255 - expected)) <= 1  # either sign
        assert {levels.min(), levels.max()} == {0, 255}


def test_components_are_drawn_as_colours_that_use_the_whole_range():
    encoder, params = make_random_encoder(1)
    images = np.stack([normalised(photograph(seed)) for seed in range(20)])
    components, less_blank = pca_columns(encoder, params, images).values()
    grey = np.zeros((1, *SHAPE), np.float32)
    tokens, blank = (  # after the final norm, without the cls token
        np.asarray(jax.jit(encoder.apply)({'params': params}, x))[:, 1:] for x in (images, grey)
    )
    check_colours(components, tokens)
    check_colours(less_blank, tokens - blank)
    assert (components != less_blank).any()


def test_too_few_patches_for_three_components_are_refused():
    with pytest.raises(UserError, match='2: give more images'):
        principal_components(np.ones((1, 1, 2, 8)))
