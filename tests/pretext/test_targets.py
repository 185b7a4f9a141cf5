"""Targets and their losses against NumPy, in float64, written out."""

import jax
import numpy as np
import pytest

from mae_jax.errors import UserError
from mae_jax.pretext.targets import (
    PCA,
    check_target,
    fit_pca,
    mean_error,
    normalized_pixel,
    patch_errors,
    patch_statistics,
)


def test_normalised_pixels_have_the_unbiased_variance_with_eps_inside_the_root():
    # Nearly flat patches of few values: there ddof and the place of eps are plain to see.
    patches = np.random.default_rng(0).normal(size=(2, 3, 4)) * np.array([[[1.0], [1e-3], [0.0]]])
    expected = np.empty_like(patches)
    for index in np.ndindex(2, 3):
        values = patches[index]
        mean = sum(values) / 4
        variance = sum((v - mean) ** 2 for v in values) / (4 - 1)
        expected[index] = (values - mean) / (variance + 1e-6) ** 0.5
    target = normalized_pixel(patches.astype(np.float32))
    np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-5)


def test_the_statistics_undo_the_normalisation():
    patches = np.random.default_rng(0).normal(3, 2, size=(2, 5, 12)).astype(np.float32)
    mean, std = patch_statistics(patches)
    assert mean.shape == std.shape == (2, 5, 1)
    target = normalized_pixel(patches)
    np.testing.assert_allclose(target * std + mean, patches, rtol=1e-5, atol=1e-5)


def correlated_patches(count=400, size=12):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + 3).astype(np.float32)


def test_the_basis_is_that_of_largest_variance_whatever_the_batches():
    patches = correlated_patches()
    found, explained = fit_pca(np.split(patches, [1, 130]), 5)
    centred = patches.astype(np.float64) - patches.mean(axis=0, dtype=np.float64)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found['mean'], patches.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(found['basis'] * rows[:5].T, axis=0)), 1, atol=1e-5)
    np.testing.assert_allclose(explained, (singular[:5] ** 2).sum() / (singular**2).sum())
    largest = np.abs(found['basis']).argmax(axis=0)
    assert (found['basis'][largest, range(5)] > 0).all()


def test_coefficients_decode_to_the_patch_the_better_the_more_there_are():
    patches = correlated_patches()
    errors = []
    for components in (1, 4, 8, 12):
        params, _ = fit_pca([patches], components)
        pca = PCA(components)
        coefficients = pca.apply({'params': params}, patches, 12)
        assert coefficients.shape == (400, components)
        decoded = pca.apply({'params': params}, coefficients, 12, decode=True)
        errors.append(np.square(decoded - patches).mean() / patches.var())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1 and errors[-1] < 1e-10


def test_a_basis_that_was_not_fitted_teaches_nothing():
    variables = PCA(2).init(jax.random.key(0), np.ones((1, 4)), 4)
    assert np.isnan(PCA(2).apply(variables, np.ones((1, 4)), 4)).all()


def test_the_error_of_numbers_is_the_mean_square_and_counts_hidden_patches_of_the_whole_batch():
    """With unequal masks, a mean of means would weigh the second example too much."""
    prediction = np.zeros((2, 3, 2), np.float32)
    target = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    mask = np.array([[True, True, False], [False, False, True]])
    by_hand = [(0 + 1) / 2, (4 + 9) / 2, (16 + 25) / 2, (36 + 49) / 2, (64 + 81) / 2, 221 / 2]
    errors = patch_errors(prediction, target)
    np.testing.assert_allclose(errors, np.reshape(by_hand, (2, 3)))
    hidden = [by_hand[0], by_hand[1], by_hand[5]]
    np.testing.assert_allclose(mean_error(errors, mask), sum(hidden) / 3)
    np.testing.assert_allclose(mean_error(errors, mask, 'all'), sum(by_hand) / 6)


def test_the_error_of_tokens_is_the_cross_entropy_in_nats():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 7)) * 5
    ids = rng.integers(0, 7, (2, 3))
    by_hand = np.empty((2, 3))
    for index in np.ndindex(2, 3):
        odds = np.exp(logits[index])
        by_hand[index] = -np.log(odds[ids[index]] / odds.sum())
    np.testing.assert_allclose(patch_errors(logits.astype(np.float32), ids), by_hand, rtol=1e-5)


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        (dict(name='hog'), r"target\.name='hog'.*pixel \| normalized_pixel \| pca \| token"),
        (dict(loss_on='visible'), r"target\.loss_on='visible'.*hidden \| all"),
        (dict(name='normalized_pixel', patch_dim=1), r'model\.patch_size'),
        (dict(name='pca', components=13), r'target\.components=13.* 1 to 12'),
        (dict(name='pca', components=0), r'target\.components=0'),
        (dict(name='token', codes=1), r'target\.codes=1'),
    ],
)
def test_what_there_is_not_is_refused_by_name(fields, told):
    usual = dict(name='pixel', loss_on='hidden', components=4, codes=8, patch_dim=12)
    check_target(**usual)
    with pytest.raises(UserError, match=told):
        check_target(**usual | fields)
