"""Accuracies of fits on features whose answer is known."""

import jax
import numpy as np

from mae_jax.models.mae import MAE
from mae_jax.tasks import probe


def blobs(separation: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten Gaussian classes; with no separation their features say nothing of the label."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(10, 32)) * separation
    labels = np.arange(count) % 10
    return centres[labels] + rng.normal(size=(count, 32)), labels


def test_separate_classes_are_told_apart_and_noise_is_not():
    telling = probe.accuracies(*blobs(8, 300, 1), *blobs(8, 200, 2))
    noise = probe.accuracies(*blobs(0, 300, 1), *blobs(0, 200, 2))
    assert telling.keys() == noise.keys() == probe.NAMES.keys()
    assert all(value > 0.99 for value in telling.values())
    assert all(value < 0.25 for value in noise.values())


def test_few_labels_are_a_hundred_balanced_ones():
    labels = np.repeat(np.arange(10), [20] * 9 + [500])
    chosen = labels[probe._balanced_subset(labels, 100, np.random.default_rng(0))]
    np.testing.assert_array_equal(np.bincount(chosen), [10] * 10)


def test_features_are_the_mean_of_the_encoders_patch_tokens():
    model = MAE(
        patch_size=4, width=16, depth=1, heads=2,
        decoder_width=16, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    params = model.init(jax.random.key(0), images, noise=np.zeros((3, 4)))['params']['encoder']
    # With all weights zero but the final norm's bias, every token is that bias.
    params = jax.tree.map(np.zeros_like, params)
    params['norm']['bias'] = np.arange(16, dtype=np.float32)
    features = probe.feature_function(model)(params, images)
    np.testing.assert_allclose(features, np.tile(np.arange(16), (3, 1)))
