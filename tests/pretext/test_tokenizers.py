import json

import jax
import jax.numpy as jnp
import make_dvae
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image
from safetensors.numpy import save_file

from mae_jax.errors import UserError
from mae_jax.models.patches import patchify
from mae_jax.pretext.dvae import DVAE
from mae_jax.pretext.tokenizers import HEADER, make_tokenizer, save_dvae

GRID = (2, 3)
SIZES = dict(codes=512, width=16, blocks=1)


def make(spec, codes=SIZES['codes'], grid=GRID, channels=3):
    return make_tokenizer(spec, codes=codes, grid=grid, channels=channels)


@pytest.fixture(scope='module')
def tensors():
    """Tensors of a dVAE of differences of pixels, which gives images many codes."""
    tree = make_dvae.to_tree(make_dvae.weights(**SIZES))
    flat = traverse_util.flatten_dict(tree, sep='/')
    flat = {name: x if x.ndim == 4 else 0 * x for name, x in flat.items()}
    for name in ('input/kernel', 'output/kernel'):
        flat[name] -= flat[name].mean((0, 1, 2))
    return flat


@pytest.fixture
def dvae_file(tensors, tmp_path):
    path = str(tmp_path / 'dvae.safetensors')
    save_dvae(path, DVAE(**SIZES), tensors)
    return path


@pytest.mark.parametrize('size', [(16, 24), (32, 48), (37, 50), (12, 18)])
def test_images_are_resized_as_pillow_does_and_codes_are_in_row_major_order(
    size, dvae_file, tensors
):
    """To 8 pixels a patch, larger images and smaller ones, and cut to [0, 1]."""
    images = make_dvae.images(6, *size)
    images[:2] = np.round(images[:2])  # at such edges the filter overshoots
    resized = np.zeros((6, 16, 24, 3), np.float32)
    for i, c in np.ndindex(6, 3):
        band = Image.fromarray(images[i, :, :, c]).resize((24, 16), Image.Resampling.LANCZOS)
        resized[i, :, :, c] = np.clip(band, 0, 1)
    params = traverse_util.unflatten_dict(tensors, sep='/')
    logits = np.asarray(jax.jit(DVAE(**SIZES).apply)({'params': params}, resized))
    expected = [[row[column].argmax() for row in map_ for column in range(3)] for map_ in logits]

    tokenizer = make(dvae_file)
    ids = jax.jit(tokenizer.apply)(tokenizer.load_params(), images)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, expected)
    assert len(np.unique(ids)) > 5  # codes differ between patches


def test_a_tokenizer_can_be_a_static_argument(dvae_file):
    tokenizer = make(dvae_file)
    assert {tokenizer: 1}[tokenizer] == 1
    assert jax.tree.leaves(tokenizer) == [tokenizer]
    with pytest.raises(AttributeError):
        tokenizer.codes = 3


@pytest.mark.parametrize(
    'returns', ['ids', 'ids.reshape(len(images), 2, 3)', 'ids.astype("uint8")']
)
def test_a_function_of_the_users_makes_the_tokens(returns, user_module):
    """The brightness of each patch in eight steps, from images of four bands."""
    module = user_module(
        'def brightness(images):\n'
        '    cells = images.reshape(len(images), 2, 4, 3, 4, 4).mean((2, 4, 5))\n'
        '    ids = (cells * 8).astype(jnp.int32).reshape(len(images), 6)\n'
        f'    return {returns}'
    )
    images = np.random.RandomState(0).uniform(size=(5, 8, 12, 4)).astype(np.float32)
    images *= np.linspace(0, 1, 5 * 12)[:, None].reshape(5, 1, 12, 1)
    tokenizer = make(f'{module}:brightness', codes=8, channels=4)
    assert (tokenizer.codes, tokenizer.load_params()) == (8, {})
    ids = jax.jit(tokenizer.apply)({}, images)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, (patchify(images, 4).mean(-1) * 8).astype(int))


@pytest.mark.parametrize(
    'body, message',
    [
        ('images', r'returns float32 \[5, 16, 24, 3\].*integer ids \[5, 6\] or \[5, 2, 3\]'),
        ('jnp.zeros((5, 6))', r'returns float32 \[5, 6\]'),
        ('jnp.zeros((5, 3, 2), int)', r'returns int32 \[5, 3, 2\]'),
        ('None', 'returns NoneType'),
        ('[jnp.zeros((5, 6), int)]', 'returns list'),
        ('jnp.zeros((5, 6), int) if images.sum() > 0 else 0', 'cannot be traced'),
    ],
)
def test_a_function_that_returns_no_ids_is_refused(body, message, user_module):
    module = user_module(f'def tokens(images):\n    return {body}')
    images = jax.ShapeDtypeStruct((5, 16, 24, 3), jnp.float32)
    tokenizer = make(f'{module}:tokens')
    with pytest.raises(UserError, match=f'target.tokenizer=.*{module}:tokens.*{message}'):
        jax.eval_shape(tokenizer.apply, {}, images)


@pytest.mark.parametrize(
    'spec, message',
    [
        (None, r'target\.tokenizer=None.*convert_dvae\.py.*module:function'),
        ('', 'names nothing'),
        ('dvae.pkl', r'convert_dvae\.py'),
        ('nowhere.at.all:tokens', "No module named 'nowhere'"),
        (':tokens', 'cannot be imported'),
        ('.relative:tokens', 'cannot be imported'),
        ('math:tokens', "math has no function 'tokens'"),
        ('math:pi', "no function 'pi'"),
        ('missing.safetensors', 'does not exist'),
    ],
)
def test_what_makes_no_tokens_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        make(spec)


def test_the_dvae_takes_three_channels_and_has_its_own_number_of_codes(dvae_file):
    with pytest.raises(UserError, match=r'dataset\.channels=1.*takes 3'):
        make(dvae_file, channels=1)
    with pytest.raises(UserError, match=r'target\.codes=8192.*has 512.*target\.codes=512'):
        make(dvae_file, codes=8192)


@pytest.mark.parametrize('header', [{}, {HEADER: '{}'}, {HEADER: 'x'}, {HEADER: '[]'}])
def test_a_file_of_something_else_is_refused(header, tensors, tmp_path):
    save_file({'x': np.zeros(3)}, tmp_path / 'other.safetensors', metadata=header)
    with pytest.raises(UserError, match=r'is not the file of a dVAE.*\n.*convert_dvae\.py'):
        make(str(tmp_path / 'other.safetensors'))


@pytest.mark.parametrize('change', ['missing', 'extra', 'shape'])
def test_tensors_that_are_not_the_dvaes_are_refused(change, tensors, tmp_path):
    tensors = dict(tensors)
    if change == 'missing':
        del tensors['input/bias']
    elif change == 'extra':
        tensors['input/scale'] = np.ones(3, np.float32)
    else:
        tensors['input/bias'] = np.ones(3, np.float32)
    path = str(tmp_path / 'dvae.safetensors')
    save_file(tensors, path, metadata={HEADER: json.dumps(SIZES)})
    with pytest.raises(UserError, match=r'input/(bias|scale) has shape.*1 tensors differ'):
        make(path).load_params()
