"""Attention of the cls token, against NumPy."""

import jax
import numpy as np
import pytest
from helpers.drawings import cut
from helpers.models import make_random_encoder
from helpers.photographs import GRID, PATCH, SHAPE, normalised, photograph

from mae_jax.errors import UserError
from mae_jax.visualization.attention import attention_columns, cls_attention
from mae_jax.visualization.pca import pca_columns


def attention_by_hand(params, image: np.ndarray, block: int) -> np.ndarray:
    """Computes float64 [heads, rows, columns] where all blocks before are the identity."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    embed = params['patch_embed']
    patches = cut(image, PATCH) @ embed['kernel'] + embed['bias']
    tokens = np.concatenate([params['cls_token'][0], patches]) + params['pos_embed'][0]
    block = params['blocks'][f'block_{block}']
    centred = tokens - tokens.mean(axis=1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    normal = normal * block['norm1']['scale'] + block['norm1']['bias']
    qkv = normal @ block['attention']['qkv']['kernel'] + block['attention']['qkv']['bias']
    maps = []
    for head in range(2):
        query = qkv[0, 4 * head : 4 * head + 4]
        keys = qkv[:, 8 + 4 * head : 12 + 4 * head]
        logits = keys @ query / 2.0  # the root of a head's width, 4
        weights = np.exp(logits - logits.max())
        maps.append((weights / weights.sum())[1:].reshape(GRID))
    return np.stack(maps)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('depth, block, index', [(1, -1, 0), (2, -1, 1), (2, 0, 0), (2, 1, 1)])
def test_attention_is_that_of_the_cls_token_at_the_block(depth, block, index, scan):
    encoder, params = make_random_encoder(depth, scan=scan, remat='block' if scan else 'none')
    images = np.stack([normalised(photograph(seed)) for seed in range(2)])
    actual = cls_attention(encoder, params, images, block)
    expected = np.stack([attention_by_hand(params, image, index) for image in images])
    assert actual.shape == (2, 2, *GRID)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('block', [2, -3])
@pytest.mark.parametrize('columns', [attention_columns, pca_columns])
def test_a_block_that_does_not_exist_is_refused(columns, block):
    encoder, params = make_random_encoder(2)
    with pytest.raises(UserError, match='block'):
        columns(encoder, params, normalised(photograph())[None], block)


def test_attention_is_drawn_head_by_head_over_the_patches():
    encoder, params = make_random_encoder(1)
    image = normalised(photograph())
    columns = attention_columns(encoder, params, image[None])
    assert list(columns) == ['mean of all heads', 'head 0', 'head 1']
    heads = attention_by_hand(params, image, 0)
    for drawn, weights in zip(columns.values(), [heads.mean(axis=0), *heads], strict=True):
        assert drawn.shape == (1, *SHAPE)
        patches = drawn[0].reshape(3, 4, 2, 4, 3)
        assert (patches == patches[:, :1, :, :1]).all()  # one colour a patch
        light = patches[:, 0, :, 0].sum(axis=-1, dtype=int)
        assert (light.ravel()[np.argsort(weights, axis=None)] == np.sort(light, axis=None)).all()
        np.testing.assert_array_equal(light[weights == weights.max()], 255 + 250 + 190)
