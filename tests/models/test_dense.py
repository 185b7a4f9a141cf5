"""The dense layer and its written-out gradients, against NumPy's."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mae_jax.models.dense import Dense, _sum_by_product, linear


def operands(dtype):
    rng = np.random.default_rng(0)
    shapes = [(2, 5, 300), (300, 7), (2, 5, 7)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize('sum_by_product', [False, True])
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_products_are_sums_in_float32_and_gradients_of_parameters_are_never_rounded(
    dtype, sum_by_product
):
    x, kernel, gradient = operands(dtype)
    bias = np.random.default_rng(1).standard_normal(7).astype(np.float32)
    params = kernel.astype(np.float32), bias  # the kernel's numbers are those of `dtype`
    layer = partial(linear, sum_by_product=sum_by_product)
    out, pull = jax.vjp(layer, jnp.asarray(x), *params)
    wide = [a.astype(np.float64) for a in (x, kernel, gradient)]
    rows = [wide[0].reshape(-1, 300), wide[2].reshape(-1, 7)]
    half_a_digit = jnp.finfo(dtype).eps / 2
    expected = [
        (wide[0] @ wide[1] + bias, dtype, half_a_digit),
        (wide[2] @ wide[1].T, dtype, half_a_digit),
        (rows[0].T @ rows[1], np.float32, 1e-6),
        (rows[1].sum(0), np.float32, 1e-6),
    ]
    for ours, (theirs, dtype, tolerance) in zip(
        [out, *pull(jnp.asarray(gradient))], expected, strict=True
    ):
        assert ours.dtype == dtype
        ours = np.asarray(ours, np.float64)
        atol = 3e-5 if dtype == x.dtype else 3e-6
        np.testing.assert_allclose(ours, theirs, rtol=1.01 * tolerance, atol=atol)


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_a_sum_by_product_is_the_sum(dtype):
    rows = np.random.default_rng(0).standard_normal((77, 5)).astype(dtype)
    ours = jax.jit(_sum_by_product)(rows)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, rows.astype(np.float64).sum(0), rtol=1e-6, atol=3e-6)


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
