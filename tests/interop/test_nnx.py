"""The encoder gives the same outputs and gradients through the bridge of flax.nnx."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from mae_jax.models.vit import Encoder


@pytest.fixture(scope='module')
def encoders():
    """A linen encoder, its parameters, an nnx encoder with the same ones, and images."""
    encoder = Encoder(patch_size=2, width=16, depth=2, heads=4)
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    params = jax.jit(encoder.init)(jax.random.key(2), images)['params']

    @nnx.jit
    def make_model(images):
        return nnx.bridge.ToNNX(encoder, rngs=nnx.Rngs(0)).lazy_init(images)

    model = make_model(images[:1])
    nnx.update(model, params)
    return encoder, params, model, images


def test_nnx_encoder_gives_the_features_of_the_linen_one(encoders):
    encoder, params, model, images = encoders
    for options in ({'output': 'mean'}, {'output': 'map', 'blocks': (0, 1)}):
        expected = encoder.apply({'params': params}, images, method='features', **options)
        actual = model(images, method='features', **options)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_nnx_encoder_has_the_gradients_of_the_linen_one(encoders):
    encoder, params, model, images = encoders
    weights = jax.random.normal(jax.random.key(3), (16,))

    def linen_loss(params):
        return jnp.mean(encoder.apply({'params': params}, images, method='features') @ weights)

    def nnx_loss(model):
        return jnp.mean(model(images, method='features') @ weights)

    expected = traverse_util.flatten_dict(jax.jit(jax.grad(linen_loss))(params))
    actual = nnx.to_flat_state(nnx.jit(nnx.grad(nnx_loss))(model))
    actual = {path: leaf[...] for path, leaf in actual}
    assert actual.keys() == expected.keys()
    assert all(np.any(gradient) for gradient in expected.values())
    for path, gradient in expected.items():
        np.testing.assert_allclose(actual[path], gradient, rtol=1e-5, atol=1e-6, err_msg=str(path))
