"""Which attention is chosen, and the TPU's operation over several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from mae_jax.models.attention import dispatch
from mae_jax.models.attention.plain import plain_attention
from mae_jax.models.attention.tpu import tpu_attention


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_the_tpus_operation_is_plain_attention_elsewhere_with_its_gradient():
    qkv, gradient = draw(2, 5, 24), draw(2, 5, 8)
    expected, pull = jax.vjp(lambda x: plain_attention(x, 2)[0], qkv)
    actual, pull_back = jax.vjp(lambda x: tpu_attention(x, 2), qkv)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(pull_back(gradient)[0], pull(gradient)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('platform', 'dtype', 'tokens', 'batch', 'expected'),
    [
        ('cpu', 'bfloat16', 50, 8, 'plain'),
        ('tpu', 'bfloat16', 197, 8, 'pallas'),
        ('tpu', 'float32', 1024, 8, 'pallas'),
        ('tpu', 'bfloat16', 1025, 8, 'plain'),
        ('tpu', 'bfloat16', 50, 6, 'plain'),  # a device would have part of an image
        ('gpu', 'bfloat16', 50, 8, 'cudnn'),
        ('gpu', 'bfloat16', 197, 8, 'plain'),  # cuDNN could not train
        ('gpu', 'float32', 50, 8, 'plain'),
    ],
)
def test_auto_is_the_fastest_that_works(monkeypatch, platform, dtype, tokens, batch, expected):
    monkeypatch.setattr(dispatch, '_platform', lambda: platform)
    qkv = jnp.zeros((batch, tokens, 3 * 64), dtype)
    mesh = AbstractMesh((2, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        assert dispatch._choose(qkv, 2, 'auto') == expected
        assert dispatch._choose(qkv, 2, 'plain') == 'plain'
