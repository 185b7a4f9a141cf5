"""The dense product and its written-out gradients, against NumPy's."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mae_jax.models.dense import Dense, matmul


def operands(dtype):
    rng = np.random.default_rng(0)
    shapes = [(2, 5, 300), (300, 7), (2, 5, 7)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_product_and_gradients_are_sums_in_float32_rounded_once(dtype):
    x, kernel, gradient = operands(dtype)
    product, pull = jax.vjp(matmul, jnp.asarray(x), jnp.asarray(kernel))
    wide = [a.astype(np.float64) for a in (x, kernel, gradient)]
    expected = [
        wide[0] @ wide[1],
        wide[2] @ wide[1].T,
        wide[0].reshape(-1, 300).T @ wide[2].reshape(-1, 7),
    ]
    half_a_digit = jnp.finfo(dtype).eps / 2
    for ours, theirs in zip([product, *pull(jnp.asarray(gradient))], expected, strict=True):
        assert ours.dtype == dtype
        ours = np.asarray(ours, np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=1.01 * half_a_digit, atol=3e-5)


def test_the_layer_adds_a_bias_and_keeps_its_parameters_in_float32():
    x = jnp.ones((2, 3, 4))
    layer = Dense(5, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)['params']
    assert {name: (p.shape, p.dtype.name) for name, p in params.items()} == {
        'kernel': ((4, 5), 'float32'),
        'bias': ((5,), 'float32'),
    }
    params['bias'] = jnp.full((5,), 2.0)
    out = layer.apply({'params': params}, x)
    assert out.dtype == jnp.bfloat16
    expected = np.asarray(params['kernel'], np.float32).sum(axis=0) + 2
    np.testing.assert_allclose(np.asarray(out[0, 0], np.float32), expected, rtol=2e-2)
