"""Which attention is chosen, and the TPU's operation over several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from mae_jax.models.attention import dispatch, gpu
from mae_jax.models.attention.plain import plain_attention
from mae_jax.models.attention.tpu import tpu_attention
from mae_jax.models.vit import Encoder


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
        ('cpu', 'bfloat16', 50, 8, 'cpu'),
        ('tpu', 'bfloat16', 197, 8, 'pallas'),
        ('tpu', 'float32', 1024, 8, 'pallas'),
        ('tpu', 'bfloat16', 1025, 8, 'plain'),
        ('tpu', 'bfloat16', 50, 6, 'plain'),  # a device would have part of an image
        ('gpu', 'bfloat16', 50, 8, 'cudnn'),
        ('gpu', 'bfloat16', 197, 8, 'cudnn'),
        ('gpu', 'float32', 50, 8, 'plain'),
    ],
)
def test_auto_is_the_fastest_that_works(monkeypatch, platform, dtype, tokens, batch, expected):
    monkeypatch.setattr(dispatch, 'platform', lambda: platform)
    qkv = jnp.zeros((batch, tokens, 3 * 64), dtype)
    mesh = AbstractMesh((2, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        assert dispatch._choose(qkv, 2, 'auto') == expected
        assert dispatch._choose(qkv, 2, 'plain') == 'plain'


@pytest.mark.parametrize('heads', [1, 16])
def test_auto_is_plain_where_cudnn_has_no_kernel(monkeypatch, heads):
    monkeypatch.setattr(dispatch, 'platform', lambda: 'gpu')
    qkv = jnp.zeros((8, 50, 3 * 192), jnp.bfloat16)  # heads of 192 and 12 columns
    assert dispatch._choose(qkv, heads, 'auto') == 'plain'


@pytest.mark.parametrize('tokens', [50, 197])
def test_cudnns_attention_sees_an_even_number_of_tokens_and_nothing_of_the_added_one(
    monkeypatch, tokens
):
    seen = []

    def stand_in(q, k, v, *, implementation, **lengths):
        assert implementation == 'cudnn'
        seen.append(q.shape[1])
        return attention(q, k, v, implementation='xla', **lengths)

    attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
    qkv, gradient = draw(2, tokens, 48), draw(2, tokens, 16)
    actual, pull = jax.vjp(lambda x: gpu.cudnn_attention(x, 2), qkv)
    expected, pull_expected = jax.vjp(lambda x: plain_attention(x, 2)[0], qkv)
    assert seen == [tokens + tokens % 2]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pull(gradient)[0], pull_expected(gradient)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('tokens', 'width'), [(50, 64), (197, 32), (197, 64), (1, 80)])
def test_cudnns_attention_lowers_for_a_gpu_forward_and_backward(tokens, width):
    pytest.importorskip('jax_cuda13_plugin', reason="needs pip install 'jax[cuda13]', and no GPU")
    qkv = jax.ShapeDtypeStruct((8, tokens, 3 * 4 * width), jnp.bfloat16)

    def both(qkv):
        mixed, pull = jax.vjp(lambda x: gpu.cudnn_attention(x, 4), qkv)
        return pull(mixed)

    text = jax.jit(both).trace(qkv).lower(lowering_platforms=('cuda',)).as_text()
    assert '__cudnn$fmhaSoftmax"' in text or '__cudnn$fmhaSoftmax(' in text
    assert '__cudnn$fmhaSoftmaxBackward' in text


def test_an_encoder_has_forward_mode_on_a_cpu_with_automatic_attention():
    encoder = Encoder(patch_size=2, width=8, depth=1, heads=2, attention='auto')
    images = draw(1, 4, 4, 3)
    params = encoder.init(jax.random.key(0), images)

    def features(images):
        return (encoder.apply(params, images) ** 3).sum()

    _, along = jax.jvp(features, (images,), (jnp.ones_like(images),))
    np.testing.assert_allclose(along, jax.grad(features)(images).sum(), rtol=1e-4)
