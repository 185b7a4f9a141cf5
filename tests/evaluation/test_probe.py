"""Accuracies of fits on features whose classes are separable, or are not."""

import jax
import numpy as np
import pytest

from mae_jax.errors import UserError
from mae_jax.evaluation.frozen_encoder import FrozenEncoder
from mae_jax.evaluation.probe import _sample_per_class, accuracies
from mae_jax.models.vit import Encoder


def blobs(separation: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten Gaussian classes; with no separation their features are independent of the label."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(10, 32)) * separation
    labels = np.arange(count) % 10
    return centres[labels] + rng.normal(size=(count, 32)), labels


@pytest.mark.parametrize('linear', ['logistic', 'ridge'])
def test_separable_classes_are_classified_and_noise_is_not(linear):
    separable = accuracies(*blobs(8, 300, 1), *blobs(8, 200, 2), linear=linear, shots=(1, 10))
    noise = accuracies(*blobs(0, 300, 1), *blobs(0, 200, 2), linear=linear, shots=(1, 10))
    assert separable.keys() == noise.keys() == {'linear', 'knn', '1_shot', '10_shot'}
    assert all(value > 0.99 for value in separable.values())
    assert all(value < 0.25 for value in noise.values())


def test_nearest_neighbours_are_those_by_cosine():
    train = np.array([[1.0, 0.0], [0.0, 9.0], [0.1, 9.0]])
    test = np.array([[50.0, 1.0], [0.01, 0.1]])  # by distance, both would be nearest to the first
    metrics = accuracies(train, np.array([0, 1, 1]), test, np.array([0, 1]), neighbours=1, shots=())
    assert metrics['knn'] == 1


def test_shots_are_that_number_of_each_class_or_all_of_a_rare_one():
    labels = np.repeat(np.arange(10), [20] * 8 + [500, 3])
    chosen = labels[_sample_per_class(labels, 10, np.random.default_rng(0))]
    np.testing.assert_array_equal(np.bincount(chosen), [10] * 9 + [3])


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'linear': 'svm'}, "linear='svm'"), ({'neighbours': 31}, '31 neighbours of 30 examples')],
)
def test_what_cannot_be_fitted_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        accuracies(*blobs(8, 30, 1), *blobs(8, 20, 2), **options)


@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_features_are_the_pooled_tokens_of_the_normalised_images(pool):
    encoder = Encoder(patch_size=4, width=16, depth=1, heads=2)
    frozen = FrozenEncoder(encoder, mean=(0.5,), std=(0.25,), pool=pool)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    normalised = (pixels / np.float32(255) - 0.5) / 0.25
    params = encoder.init(jax.random.key(0), normalised)['params']
    tokens = np.asarray(encoder.apply({'params': params}, normalised))
    features = frozen.features({'encoder': params}, {'image': pixels})
    expected = tokens[:, 1:].mean(axis=1) if pool == 'mean' else tokens[:, 0]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_without_a_final_norm_gives_its_tokens_as_they_are():
    encoder = Encoder(patch_size=4, width=16, depth=1, heads=2)
    images = np.zeros((2, 8, 8, 1), np.float32)
    params = encoder.init(jax.random.key(0), images, final_norm=False)['params']
    frozen = FrozenEncoder(encoder, mean=(0.0,), std=(1.0,))
    tokens = encoder.apply({'params': params}, images, final_norm=False)
    features = frozen.features({'encoder': params}, {'image': images})
    np.testing.assert_allclose(features, tokens[:, 1:].mean(axis=1), rtol=1e-5)
