"""The CPU's attention, against plain attention: values, weights, and gradients of both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models.attention.cpu import cpu_attention
from mae_jax.models.attention.plain import plain_attention


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(('tokens', 'heads', 'width'), [(1, 1, 4), (50, 3, 64), (197, 2, 32)])
def test_it_equals_plain_attention(tokens, heads, width):
    qkv = 3 * draw(2, tokens, 3 * heads * width)
    for ours, expected in zip(cpu_attention(qkv, heads), plain_attention(qkv, heads), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('mode', ['forward', 'reverse'])
def test_its_derivatives_are_those_of_plain_attention(mode):
    qkv, tangent, gradient = draw(2, 50, 3 * 32), draw(2, 50, 3 * 32) / 2, draw(2, 50, 32)

    def derivative(attention):
        def mixed(x):
            return attention(x, 2)[0]

        if mode == 'forward':
            return jax.jvp(mixed, (qkv,), (tangent,))[1]
        return jax.vjp(mixed, qkv)[1](gradient)[0]

    expected = derivative(plain_attention)
    np.testing.assert_allclose(derivative(cpu_attention), expected, rtol=1e-4, atol=1e-5)


def test_logits_of_any_size_give_finite_weights():
    mixed, weights = cpu_attention(1000 * draw(1, 7, 24), 2)
    assert jnp.isfinite(mixed).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_bfloat16_is_rounded_once():
    qkv = draw(2, 50, 3 * 32).astype(jnp.bfloat16)
    mixed, weights = cpu_attention(qkv, 2)
    assert (mixed.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    exact, _ = plain_attention(qkv.astype(jnp.float32), 2)
    np.testing.assert_allclose(mixed.astype(jnp.float32), exact, rtol=2.0**-8, atol=1e-6)
