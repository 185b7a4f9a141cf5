"""The encoder through the bridge of flax.nnx is the encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from mae_jax.models.vit import Encoder


@pytest.fixture(scope='module')
def encoders():
    """A linen encoder, its parameters, the nnx one that was given them, and images."""
    encoder = Encoder(patch_size=2, width=16, depth=2, heads=4)
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    params = encoder.init(jax.random.key(2), images)['params']
    model = nnx.bridge.ToNNX(encoder, rngs=nnx.Rngs(0)).lazy_init(images[:1])
    nnx.update(model, params)
    return encoder, params, model, images


def test_nnx_encoder_gives_the_features_of_the_linen_one(encoders):
    encoder, params, model, images = encoders
    for options in ({'output': 'mean'}, {'output': 'map', 'blocks': (0, 1)}):
        wanted = encoder.apply({'params': params}, images, method='features', **options)
        found = model(images, method='features', **options)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_nnx_encoder_has_the_gradients_of_the_linen_one(encoders):
    encoder, params, model, images = encoders
    weights = jax.random.normal(jax.random.key(3), (16,))

    def linen_loss(params):
        return jnp.mean(encoder.apply({'params': params}, images, method='features') @ weights)

    def nnx_loss(model):
        return jnp.mean(model(images, method='features') @ weights)

    wanted = traverse_util.flatten_dict(jax.jit(jax.grad(linen_loss))(params))
    found = nnx.to_flat_state(nnx.jit(nnx.grad(nnx_loss))(model))
    found = {path: leaf[...] for path, leaf in found}
    assert found.keys() == wanted.keys()
    assert all(np.any(gradient) for gradient in wanted.values())
    for path, gradient in wanted.items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-5, atol=1e-6, err_msg=str(path))
