"""Layer normalisation and its closed-form gradient, against NumPy's by hand and PyTorch's."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mae_jax.models.norm import LayerNorm, _mean_by_product, layer_norm

EPS = 1e-6


def operands(mean=0.0):
    rng = np.random.default_rng(0)
    x, gradient = rng.standard_normal((2, 4, 6, 96)).astype(np.float32)
    scale, bias = rng.standard_normal((2, 96)).astype(np.float32)
    return x + np.float32(mean), scale, bias, gradient


def by_hand(x, scale, bias, gradient):
    """Returns the result and the gradients of x, scale and bias, in float64."""
    x, scale, bias, gradient = (a.astype(np.float64) for a in (x, scale, bias, gradient))
    deviation = np.sqrt(x.var(-1, keepdims=True) + EPS)
    normal = (x - x.mean(-1, keepdims=True)) / deviation
    of_normal = gradient * scale
    along = (of_normal * normal).mean(-1, keepdims=True)
    of_x = (of_normal - of_normal.mean(-1, keepdims=True) - normal * along) / deviation
    return normal * scale + bias, of_x, (gradient * normal).sum((0, 1)), gradient.sum((0, 1))


def results(x, scale, bias, gradient, dtype):
    function = lambda *args: layer_norm(*args, EPS, dtype)  # noqa: E731
    out, pull = jax.vjp(function, jnp.asarray(x), scale, bias)
    return out, *pull(jnp.asarray(gradient, dtype))


# A mean of 1,000 deviations: E[x^2] - E[x]^2 would have no correct digit.
@pytest.mark.parametrize(('mean', 'tolerance'), [(0, 1e-5), (1000, 1e-3)])
def test_norm_and_gradients_are_those_by_hand(mean, tolerance):
    given = operands(mean)
    for ours, theirs in zip(results(*given, jnp.float32), by_hand(*given), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_norm_and_gradients_are_those_of_pytorch():
    torch = pytest.importorskip('torch')
    given = operands(3.0)
    x, scale, bias, gradient = (torch.tensor(a, requires_grad=True) for a in given)
    out = torch.nn.functional.layer_norm(x, (96,), scale, bias, EPS)
    out.backward(gradient)
    expected = out, x.grad, scale.grad, bias.grad
    for ours, theirs in zip(results(*given, jnp.float32), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('stream', [np.float32, ml_dtypes.bfloat16])
def test_bfloat16_is_rounded_once_and_gradients_of_parameters_are_float32(stream):
    x, scale, bias, gradient = operands()
    x, gradient = x.astype(stream), gradient.astype(ml_dtypes.bfloat16)
    out, of_x, *of_params = results(x, scale, bias, gradient, jnp.bfloat16)
    expected = by_hand(x, scale, bias, gradient)
    assert (out.dtype, of_x.dtype) == (jnp.bfloat16, stream)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected[0], rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(np.asarray(of_x, np.float32), expected[1], rtol=2**-8, atol=1e-5)
    for ours, theirs in zip(of_params, expected[2:], strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_mean_by_products_of_bfloat16_is_that_of_float32():
    """Each number is off by 2^-17 of itself at most, where one bfloat16 is by 2^-9."""
    x = np.square(np.random.default_rng(0).standard_normal((50, 96))).astype(np.float32)
    ours = jax.jit(_mean_by_product)(x)
    np.testing.assert_allclose(ours, x.astype(np.float64).mean(-1, keepdims=True), rtol=2**-17)


def test_the_layer_has_the_parameters_of_earlier_checkpoints():
    params = LayerNorm().init(jax.random.key(0), jnp.ones((2, 8)))['params']
    assert {name: (p.shape, p.dtype.name, float(p.mean())) for name, p in params.items()} == {
        'scale': ((8,), 'float32', 1.0),
        'bias': ((8,), 'float32', 0.0),
    }
