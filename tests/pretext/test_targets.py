"""Targets and their losses against NumPy, in float64, written out."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.models import make_mae

from mae_jax.errors import UserError
from mae_jax.pretext.pca import fit_pca
from mae_jax.pretext.targets import (
    PCA,
    TARGETS,
    NormalizedPixel,
    Pixel,
    PredictionOnly,
    Target,
    Token,
    make_target,
    patch_statistics,
)


def test_normalised_pixels_have_the_unbiased_variance_with_eps_inside_the_root():
    # Nearly flat patches of few values: their result depends on ddof and on where eps is added.
    patches = np.random.default_rng(0).normal(size=(2, 3, 4)) * np.array([[[1.0], [1e-3], [0.0]]])
    expected = np.empty_like(patches)
    for index in np.ndindex(2, 3):
        values = patches[index]
        mean = sum(values) / 4
        variance = sum((v - mean) ** 2 for v in values) / (4 - 1)
        expected[index] = (values - mean) / (variance + 1e-6) ** 0.5
    target = NormalizedPixel().from_patches(patches.astype(np.float32), {})
    np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-5)


def test_the_statistics_undo_the_normalisation():
    patches = np.random.default_rng(0).normal(3, 2, size=(2, 5, 12)).astype(np.float32)
    mean, std = patch_statistics(patches)
    assert mean.shape == std.shape == (2, 5, 1)
    target = NormalizedPixel().from_patches(patches, {})
    np.testing.assert_allclose(target * std + mean, patches, rtol=1e-5, atol=1e-5)


def correlated_patches(count=400, size=12):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + 3).astype(np.float32)


def test_the_basis_is_that_of_largest_variance_whatever_the_batches():
    patches = correlated_patches()
    fitted, explained = fit_pca(np.split(patches, [1, 130]), 5)
    centred = patches.astype(np.float64) - patches.mean(axis=0, dtype=np.float64)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(fitted['mean'], patches.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(fitted['basis'] * rows[:5].T, axis=0)), 1, atol=1e-5)
    np.testing.assert_allclose(explained, (singular[:5] ** 2).sum() / (singular**2).sum())
    largest = np.abs(fitted['basis']).argmax(axis=0)
    assert (fitted['basis'][largest, range(5)] > 0).all()


def test_more_coefficients_decode_to_the_patch_more_exactly():
    patches = correlated_patches()
    errors = []
    for components in (1, 4, 8, 12):
        params, _ = fit_pca([patches], components)
        pca = PCA(components=components)
        coefficients = pca.from_patches(patches, params)
        assert coefficients.shape == (400, components)
        decoded = pca.pixels(coefficients, patches, params)
        errors.append(np.square(decoded - patches).mean() / patches.var())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1 and errors[-1] < 1e-10


def test_the_error_of_numbers_is_the_mean_square_and_counts_hidden_patches_of_the_whole_batch():
    """With unequal masks, a mean of means would weigh the second example too much."""
    prediction = np.zeros((2, 3, 2), np.float32)
    target = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    mask = np.array([[True, True, False], [False, False, True]])
    by_hand = [(0 + 1) / 2, (4 + 9) / 2, (16 + 25) / 2, (36 + 49) / 2, (64 + 81) / 2, 221 / 2]
    errors = Pixel().errors(prediction, target)
    np.testing.assert_allclose(errors, np.reshape(by_hand, (2, 3)))
    hidden = [by_hand[0], by_hand[1], by_hand[5]]
    np.testing.assert_allclose(Pixel().mean_error(errors, mask), sum(hidden) / 3)
    np.testing.assert_allclose(Pixel('all').mean_error(errors, mask), sum(by_hand) / 6)


def test_the_error_of_tokens_is_the_cross_entropy_in_nats():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 7)) * 5
    ids = rng.integers(0, 7, (2, 3))
    by_hand = np.empty((2, 3))
    for index in np.ndindex(2, 3):
        odds = np.exp(logits[index])
        by_hand[index] = -np.log(odds[ids[index]] / odds.sum())
    logits = logits.astype(np.float32)
    np.testing.assert_allclose(Token().errors(logits, ids), by_hand, rtol=1e-5)
    unknown = np.array([[-1, 7, 6]])
    np.testing.assert_array_equal(
        np.isnan(Token().errors(logits[:1], unknown)), [[True, True, False]]
    )


@pytest.mark.parametrize(
    ('target', 'patch_dim', 'message'),
    [
        (Pixel('visible'), 12, r"target\.loss_on='visible'.*hidden \| all"),
        (NormalizedPixel(), 1, r'model\.patch_size'),
        (PCA(components=13), 12, r'target\.components=13.* 1 to 12'),
        (PCA(components=0), 12, r'target\.components=0'),
        (Token(codes=1), 12, r'target\.codes=1'),
    ],
)
def test_fields_that_do_not_work_are_refused_by_name(target, patch_dim, message):
    type(target)().check(patch_dim=192)
    with pytest.raises(UserError, match=message):
        target.check(patch_dim)


def test_an_unknown_target_is_refused_with_the_known_ones():
    names = r'pixel \| normalized_pixel \| pca \| token.*, or module:function'
    with pytest.raises(UserError, match=rf"target\.name='hog'.*{names}"):
        make_target({'name': 'hog'})


def test_a_target_takes_its_fields_from_the_config():
    fields = {'loss_on': 'all', 'components': 5, 'codes': 7, 'sample': 100, 'tokenizer': None}
    assert make_target(fields | {'name': 'pca'}) == PCA('all', components=5)
    assert make_target(fields | {'name': 'token'}) == Token('all', codes=7)
    assert make_target({'name': 'normalized_pixel'}) == NormalizedPixel('hidden')


@dataclasses.dataclass(frozen=True)
class Brightness(Target):
    """The mean of each patch."""

    def prediction_size(self, patch_dim):
        return 1

    def from_patches(self, patches, fitted):
        return patches.mean(axis=-1, keepdims=True)


def test_a_registered_target_is_what_a_model_predicts():
    TARGETS.register('brightness', Brightness.from_fields)
    model = make_mae(
        target='brightness', patch_size=2, width=8, depth=1, heads=2, decoder_width=8,
        decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    noise = np.random.default_rng(1).uniform(size=(2, 6))
    params = model.init(jax.random.key(0), images, noise)['params']
    output = model.apply({'params': params}, images, noise)
    cells = images.reshape(2, 2, 2, 3, 2, 3).mean(axis=(2, 4, 5)).reshape(2, 6, 1)
    errors = np.square(output.prediction - cells)[..., 0]
    np.testing.assert_allclose(output.loss, errors[np.asarray(output.mask)].mean(), rtol=1e-5)
    assert not model.target.has_pixels and Pixel().has_pixels
    with pytest.raises(UserError, match='Brightness predicts no pixels'):
        model.apply({'params': params}, output.prediction, images, method='pixels')


def test_a_target_of_a_loaded_model_is_not_imported(user_module):
    name = f'{user_module("raise SystemExit")}:make'
    target = make_target({'name': name}, unknown_size=7)
    assert isinstance(target, PredictionOnly) and target.prediction_size(12) == 7
    with pytest.raises(UserError, match=f'target.name=.{name}. was not imported'):
        target.pixels(np.zeros((1, 4, 7), np.float32), np.zeros((1, 4, 12), np.float32), {})
