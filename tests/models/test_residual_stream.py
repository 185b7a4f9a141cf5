"""The residual stream: its dtype, what reaches it unrounded, and what that is worth."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import make_mae
from jax.extend.core import jaxprs_in_params

from mae_jax.models.classifier import Classifier
from mae_jax.models.dense import Dense
from mae_jax.models.transformer import Block, Transformer
from mae_jax.models.vit import Encoder

SIZES = dict(patch_size=8, width=32, depth=6, heads=2)
DECODER = dict(decoder_width=16, decoder_depth=4, decoder_heads=2)
HALF = jnp.bfloat16


def make(**fields):
    return make_mae(**(SIZES | DECODER | fields))


@cache
def inputs():
    """(random parameters with no zeros and ones in them, images, noise)."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 32, 32, 3)).astype(np.float32)
    noise = rng.random((4, 16), np.float32)
    params = jax.jit(make().init)(jax.random.key(0), images, noise)['params']
    params = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape), params)
    return jax.tree.map(lambda x: x.astype(np.float32), params), images, noise


@cache
def computed(**fields):
    """(prediction, gradient as one vector)."""
    params, images, noise = inputs()
    model = make(**fields)

    def loss(params):
        output = model.apply({'params': params}, images, noise)
        return output.loss, output.prediction

    gradient, prediction = jax.jit(jax.grad(loss, has_aux=True))(params)
    return prediction, jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradient)])


def distances(**fields):
    """Relative distances of prediction and gradient from those in float32."""
    pairs = zip(computed(**fields), computed(), strict=True)
    return [float(jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact)) for x, exact in pairs]


def test_a_float32_stream_is_closer_to_float32_than_a_bfloat16_one():
    wide = distances(dtype=HALF)
    narrow = distances(dtype=HALF, residual_dtype=HALF)
    assert wide[0] < 0.85 * narrow[0]
    assert max(wide) < 0.02
    assert min(wide) > 1e-4  # products are in bfloat16


def test_a_stream_is_never_narrower_than_the_products():
    for ours, exact in zip(computed(residual_dtype=HALF), computed(), strict=True):
        np.testing.assert_array_equal(ours, exact)


def results(intermediates):
    """What modules returned, without the attention weights beside it."""
    leaves = jax.tree_util.tree_leaves_with_path(intermediates)
    return [leaf for path, leaf in leaves if '__call__' in jax.tree_util.keystr(path)]


@pytest.mark.parametrize('stream', [jnp.float32, HALF])
def test_every_block_hands_on_the_dtype_of_the_stream(stream):
    params, images, noise = inputs()
    model = make(dtype=HALF, residual_dtype=stream)

    def blocks(params):
        _, variables = model.apply(
            {'params': params},
            images,
            noise,
            capture_intermediates=lambda module, _: isinstance(module, (Block, Transformer)),
        )
        return variables['intermediates']

    tokens = results(jax.eval_shape(blocks, params))
    assert len(tokens) == SIZES['depth'] + DECODER['decoder_depth'] + 2
    assert {x.dtype for x in tokens} == {np.dtype(stream)}


@pytest.mark.parametrize('options', [{}, dict(scan=True), dict(scan=True, remat='block')])
def test_products_are_in_bfloat16_and_what_is_added_is_float32(options):
    model = Transformer(2, 2, dtype=HALF, **options)
    tokens = jnp.ones((2, 4, 8))
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    jaxpr = jax.make_jaxpr(model.apply)(params, tokens).jaxpr
    products = list(equations(jaxpr, 'dot_general'))
    assert products
    assert {v.aval.dtype for e in products for v in e.invars} == {np.dtype(HALF)}
    sums = [e for e in equations(jaxpr, 'add') if e.outvars[0].aval.shape == tokens.shape]
    assert sums
    assert {e.outvars[0].aval.dtype for e in sums} == {np.dtype('float32')}


def equations(jaxpr, name):
    """Yields the equations of a primitive, those in inner functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, name)


def test_a_layer_hands_on_its_sum_unrounded():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), HALF) for shape in [(3, 300), (300, 5)])
    params = {'kernel': kernel.astype(jnp.float32), 'bias': jnp.full((5,), 1e-3)}
    layer = Dense(5, HALF, jnp.float32)
    out = layer.apply({'params': params}, x)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + 1e-3
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, atol=3e-5)  # a rounded one is apart by up to 0.06
    gradient = jax.grad(lambda p, x: layer.apply({'params': p}, x).sum(), argnums=(0, 1))
    of_params, of_x = gradient(params, x)
    assert of_x.dtype == HALF
    np.testing.assert_allclose(of_params['kernel'][:, 0], np.asarray(x, float).sum(0), rtol=1e-5)


def test_an_encoder_returns_its_dtype_and_the_stream_only_before_the_norm():
    images = jnp.ones((1, 16, 16, 3))
    encoder = Encoder(**SIZES, dtype=HALF)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images)

    def dtype(module, *args, **options):
        return jax.eval_shape(lambda v: module.apply(v, images, *args, **options), variables).dtype

    assert dtype(encoder) == HALF
    assert dtype(encoder, final_norm=False) == jnp.float32
    assert dtype(encoder.clone(has_norm=False)) == HALF
    assert dtype(encoder, method='features', output='cls') == HALF
    assert dtype(encoder, method='features', output='mean') == jnp.float32


def test_mean_pooling_averages_the_unrounded_stream():
    images = inputs()[1]
    model = Classifier(**SIZES, num_classes=3, dtype=HALF)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    features, state = jax.jit(
        lambda v: model.apply(
            v,
            images,
            method='features',
            capture_intermediates=lambda module, _: isinstance(module, Transformer),
        )
    )(variables)
    (tokens,) = results(state['intermediates'])
    mean = np.asarray(tokens, np.float64)[:, 1:].mean(axis=1)
    centred = mean - mean.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(features, expected, atol=1e-5)
