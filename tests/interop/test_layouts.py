"""The Flax ViT's layouts, by what its layers compute with them, written out in NumPy."""

import numpy as np
import pytest
import vitmae
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.interop.foreign import recognise
from mae_jax.interop.trained import Trained
from mae_jax.interop.translate import to_ours, to_theirs

CASE = vitmae.Case((8, 8), 3, 4, 0.75, normalized=True)
BLOCK = 'Transformer/encoderblock_1/MultiHeadDotProductAttention_1'


@pytest.fixture
def theirs_and_tensors():
    """augreg's tensors, and PyTorch's that the model was made of."""
    tensors = vitmae.weights(CASE)
    tree = vitmae.to_tree(CASE, tensors)
    config = ConfigDict(
        {
            'image_size': CASE.image_size,
            'model': {'variant': 'vit_tiny', 'patch_size': 4, 'width': 12, 'depth': 2, 'heads': 3},
        }
    )
    trained = Trained({'encoder': tree['encoder']}, {}, None, config)
    return trained, to_theirs(trained, 'augreg'), tensors


def test_query_key_and_value_have_an_axis_of_heads(theirs_and_tensors):
    _, theirs, tensors = theirs_and_tensors
    x = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    for part in ('query', 'key', 'value'):
        name = f'vit.layers.1.attention.{part[0]}_proj'
        expected = (x @ tensors[f'{name}.weight'].T + tensors[f'{name}.bias']).reshape(5, 3, 4)
        actual = np.einsum('nd,dhk->nhk', x, theirs[f'{BLOCK}/{part}/kernel'])
        np.testing.assert_allclose(actual + theirs[f'{BLOCK}/{part}/bias'], expected, atol=1e-5)


def test_the_projection_joins_heads(theirs_and_tensors):
    _, theirs, tensors = theirs_and_tensors
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    expected = x.reshape(5, 12) @ tensors['vit.layers.1.attention.o_proj.weight'].T
    actual = np.einsum('nhk,hkd->nd', x, theirs[f'{BLOCK}/out/kernel'])
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_patch_kernel_is_rows_columns_channels(theirs_and_tensors):
    _, theirs, tensors = theirs_and_tensors
    image = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
    kernel = tensors['vit.embeddings.patch_embeddings.projection.weight']  # [D, C, P, P]
    expected = np.einsum('yxc,dcyx->d', image, kernel)
    actual = np.einsum('yxc,yxcd->d', image, theirs['embedding/kernel'])
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_number_of_heads_is_read_off_the_shapes(theirs_and_tensors):
    _, theirs, _ = theirs_and_tensors
    assert to_ours(recognise(theirs, {}), {}).config.model.heads == 3


def test_big_vision_takes_no_position_of_the_cls_token(theirs_and_tensors):
    trained, theirs, _ = theirs_and_tensors
    named = to_theirs(trained, 'big_vision')
    table = theirs['Transformer/posembed_input/pos_embedding']
    assert np.array_equal(named['pos_embedding'], table[:, 1:])  # sin-cos: zero for the cls token
    assert not table[:, 0].any()
    learned = {'encoder': trained.params['encoder'] | {'pos_embed': table + 1}}
    with pytest.raises(UserError, match="'augreg'"):
        to_theirs(trained._replace(params=learned), 'big_vision')
