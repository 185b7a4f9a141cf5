"""The TPU's kernels, run by Pallas' interpreter, against attention by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.slow import slow_after

from mae_jax.models.attention import tpu_kernels

PAPER = {'tiny': (192, 3), 'base': (768, 12), 'large': (1024, 16), 'huge': (1280, 16)}
CASES = [
    (1, 12, 3),
    (7, 128, 2),  # two heads of a register
    (50, 160, 2),  # heads of 80 columns, none of which begins where a register does
    (65, 128, 4),
    *((length, 128, 4) for length in (1, 2, 50, 127, 128, 129, 197, 260)),
    *((50, *sizes) for sizes in PAPER.values()),
    (197, 512, 16),
    (197, 768, 12),
]
BATCH = {50: 6}  # three grid steps of two images, or one of six; else one image


def attention_by_hand(qkv: np.ndarray, gradient: np.ndarray, heads: int) -> list[np.ndarray]:
    """Returns what attention mixes and the gradient of qkv, head by head."""
    batch, length, columns = qkv.shape
    split = qkv.astype(np.float64).reshape(batch, length, 3, heads, -1)
    q, k, v = np.moveaxis(split, (2, 3), (0, 2))  # [B, h, N, d]
    gradient = gradient.astype(np.float64).reshape(batch, length, heads, -1).swapaxes(1, 2)
    scale = q.shape[-1] ** -0.5
    weights = np.exp(q @ k.swapaxes(2, 3) * scale)
    weights /= weights.sum(-1, keepdims=True)
    of_weights = gradient @ v.swapaxes(2, 3)
    of_logits = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True)) * scale
    parts = of_logits @ k, of_logits.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ gradient
    of_qkv = np.moveaxis(np.stack(parts), (0, 2), (2, 3)).reshape(batch, length, columns)
    return [(weights @ v).swapaxes(1, 2).reshape(batch, length, -1), of_qkv]


def draw(length: int, width: int, dtype: type) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(length)
    batch = BATCH.get(length, 1)
    qkv = 2 * rng.normal(size=(batch, length, 3 * width))
    return jnp.asarray(qkv, dtype), jnp.asarray(rng.normal(size=(batch, length, width)), dtype)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize(('length', 'width', 'heads'), slow_after(4, CASES))
def test_values_and_gradients_are_those_of_attention_by_hand(
    length, width, heads, dtype, tolerance
):
    qkv, gradient = draw(length, width, dtype)
    mixed, sums = tpu_kernels.forward(qkv, heads, interpret=True)
    of_qkv = tpu_kernels.backward(qkv, sums, gradient, heads, interpret=True)
    expected = attention_by_hand(*(np.asarray(x, np.float32) for x in (qkv, gradient)), heads)
    for actual, wanted in zip((mixed, of_qkv), expected, strict=True):
        assert actual.dtype == dtype and actual.shape == wanted.shape
        apart = np.abs(np.asarray(actual, np.float64) - wanted).max()
        assert apart <= tolerance * np.abs(wanted).max()


def test_large_logits_neither_overflow_nor_lose_the_largest():
    qkv = 100 * draw(7, 128, jnp.float32)[0]
    mixed = np.asarray(tpu_kernels.forward(qkv, 2, interpret=True)[0])
    q, k, v = np.asarray(qkv, np.float64).reshape(7, 3, 2, 64).transpose(1, 2, 0, 3)
    largest = (q @ k.swapaxes(1, 2)).argmax(-1)  # far above all others
    expected = np.stack([v[head, largest[head]] for head in range(2)], axis=1)
    np.testing.assert_allclose(mixed[0], expected.reshape(7, 128), rtol=1e-5, atol=1e-3)
