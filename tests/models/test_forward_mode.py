"""The encoder, the autoencoder and the classifier are differentiated in forward mode, too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import make_mae, make_random_encoder
from helpers.photographs import SHAPE
from helpers.slow import slow_after
from jax.flatten_util import ravel_pytree

from mae_jax.models.dense import linear
from mae_jax.models.norm import layer_norm
from mae_jax.models.transformer import gelu


@pytest.fixture(scope='module')
def encoder():
    """(function of images, images)."""
    encoder, params = make_random_encoder(depth=1)
    images = np.random.default_rng(1).normal(size=(1, *SHAPE)).astype(np.float32)

    def features(images):
        return encoder.apply({'params': params}, images, method='features', output='mean')

    return features, images


def test_the_tangent_of_an_encoder_is_the_difference_quotient(encoder):
    features, images = encoder
    direction = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
    tangent, linear = jax.jit(
        lambda x, d: (jax.jvp(features, (x,), (d,))[1], jax.linearize(features, x)[1](d))
    )(images, direction)
    np.testing.assert_allclose(linear, tangent, rtol=1e-4, atol=1e-5)
    step, features = 1e-2, jax.jit(features)
    quotient = features(images + step * direction) - features(images - step * direction)
    np.testing.assert_allclose(tangent, quotient / (2 * step), atol=2e-2 * np.abs(tangent).max())


@pytest.mark.slow
def test_the_hessian_of_an_encoder_is_that_of_reverse_mode_alone_and_symmetric(encoder):
    features, images = encoder

    def f(pixel):
        return jnp.square(features(jnp.asarray(images).at[0, 0, 0].set(pixel))).sum()

    both = jax.jit(lambda x: (jax.hessian(f)(x), jax.jacrev(jax.jacrev(f))(x)))
    hessian, expected = both(images[0, 0, 0])
    assert np.abs(hessian).max() > 1e-3
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(hessian, expected, rtol=1e-3, atol=1e-4)


OPTIONS = [{}, dict(scan=True), dict(remat='dots'), dict(remat='block', scan=True)]


@pytest.mark.parametrize('options', slow_after(0, OPTIONS))
def test_a_product_of_the_autoencoders_hessian_agrees_with_its_gradients(options):
    """Forward over reverse, in all parameters, as curvature is measured."""
    model = make_mae(
        patch_size=4, width=16, depth=2, heads=2, decoder_width=16, decoder_depth=1,
        decoder_heads=2, **options,
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype(np.float32)
    noise = np.random.default_rng(1).random((2, 16), np.float32)
    init = jax.jit(model.init)(jax.random.key(0), images, noise=noise)
    flat, unravel = ravel_pytree(init['params'])

    @jax.jit
    def gradient(flat):
        loss = lambda flat: model.apply({'params': unravel(flat)}, images, noise=noise).loss  # noqa: E731
        return jax.grad(loss)(flat)

    direction = np.random.default_rng(2).normal(size=flat.shape).astype(np.float32)
    product = jax.jit(lambda x, d: jax.jvp(gradient, (x,), (d,))[1])(flat, direction)
    step = 1e-3
    quotient = (gradient(flat + step * direction) - gradient(flat - step * direction)) / (2 * step)
    assert np.linalg.norm(product - quotient) < 2e-2 * np.linalg.norm(product)


@pytest.mark.parametrize(
    'differentiate',
    [jax.jacfwd, jax.jacrev, lambda f, n: jax.jacfwd(jax.jacrev(f, n), n)],
    ids=['forward', 'reverse', 'forward over reverse'],
)
@pytest.mark.parametrize('name', ['linear', 'layer_norm', 'gelu'])
def test_a_layer_has_the_derivatives_of_the_plain_formula(name, differentiate):
    ours, plain, shapes = LAYERS[name]
    rng = np.random.default_rng(0)
    operands = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    functions = [lambda *args, f=f: jnp.sin(f(*args)) for f in (ours, plain)]
    derivatives = [differentiate(f, number) for number in range(len(shapes)) for f in functions]
    results = jax.jit(lambda *operands: [d(*operands) for d in derivatives])(*operands)
    for actual, expected in zip(results[::2], results[1::2], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)


def plain_norm(x, scale, bias):
    deviation = jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return (x - x.mean(-1, keepdims=True)) / deviation * scale + bias


LAYERS = {
    'linear': (linear, lambda x, kernel, bias: x @ kernel + bias, [(2, 2, 3), (3, 2), (2,)]),
    'layer_norm': (
        lambda *operands: layer_norm(*operands, 1e-6, jnp.float32),
        plain_norm,
        [(2, 2, 5), (5,), (5,)],
    ),
    'gelu': (gelu, lambda x: x * jax.scipy.stats.norm.cdf(x), [(3, 4)]),
}


def test_gradients_of_each_example_are_those_of_one_after_the_other():
    rng = np.random.default_rng(0)
    shapes = (6, 3, 4), (4, 5), (5,)
    x, *params = (rng.normal(size=size).astype(np.float32) for size in shapes)
    gradient = jax.jit(jax.grad(lambda params, x: jnp.sin(linear(x, *params)).sum()))
    expected = jax.tree.map(lambda *each: np.stack(each), *[gradient(params, row) for row in x])
    actual = jax.jit(jax.vmap(gradient, (None, 0)))(params, x)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
