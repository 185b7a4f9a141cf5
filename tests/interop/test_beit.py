"""BEiT's files: what is read of them, what is written back, and what its own library computes."""

import json

import beit
import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.commands import ROOT

import mae_jax
from mae_jax.errors import UserError
from mae_jax.interop.check import run_ours
from mae_jax.interop.convert import convert
from mae_jax.interop.read import read_config, read_model
from mae_jax.interop.trained import read_trained
from mae_jax.models.relative import resize_table

HALF = (0.5, 0.5, 0.5)
INDEX = np.zeros((17, 17), np.int64)


def silent(line: str) -> None:
    pass


@pytest.fixture
def files(tmp_path):
    """Case -> a file with BEiT's own names, and the tensors that are no weights of the model."""
    paths = {}
    for name, case in beit.CASES.items():
        tensors = beit.weights(case)
        if case.shared:
            tensors['mask_token'] = np.ones((1, 1, beit.WIDTH), np.float32)
            tensors['lm_head.weight'] = np.ones((7, beit.WIDTH), np.float32)
            tensors['rel_pos_bias.relative_position_index'] = INDEX
        else:
            tensors['blocks.0.attn.relative_position_index'] = INDEX
        paths[name] = tmp_path / f'{name}.safetensors'
        safetensors.numpy.save_file(tensors, paths[name], {'format': 'pt'})
    return paths


def golden(name: str) -> np.ndarray:
    with np.load(ROOT / 'tests/golden/beit.npz') as arrays:
        return arrays[name]


def given(name: str) -> dict:
    """The size of images that are no squares, which no tensor has."""
    return {'image_size': beit.CASES[name].image_size} if 'wide' in name else {}


@pytest.mark.parametrize('name', beit.CASES)
def test_a_converted_beit_computes_what_timm_does(name, files, tmp_path):
    path = tmp_path / 'ours.safetensors'
    convert(files[name], path, run=False, given=given(name), say=silent)
    trained = read_trained(path)
    outputs = run_ours(trained, beit.images(beit.CASES[name]), np.zeros(()))
    np.testing.assert_allclose(outputs, golden(name), rtol=1e-4, atol=2e-5)
    assert trained.config.image_size == beit.CASES[name].image_size
    assert trained.config.dataset.mean == trained.config.dataset.std == HALF
    assert trained.config.model.heads == beit.HEADS  # of the table, where the default has none


@pytest.mark.parametrize('middle', ['ours.safetensors', 'hub'])
@pytest.mark.parametrize('name', beit.CASES)
def test_round_trips_lose_nothing(name, middle, files, tmp_path):
    """Through ours, or through ours and the directory of Hugging Face."""
    options = dict(run=False, given=given(name), say=silent)
    convert(files[name], tmp_path / middle, **options)
    convert(tmp_path / middle, tmp_path / 'back.safetensors', to='official', **options)
    tensors = beit.weights(beit.CASES[name])
    again = safetensors.numpy.load_file(tmp_path / 'back.safetensors')
    assert again.keys() == tensors.keys()
    assert all(again[tensor].tobytes() == tensors[tensor].tobytes() for tensor in tensors)


def test_what_is_left_out_is_named_but_not_the_index(files, tmp_path):
    log = []
    convert(files['pretrained'], tmp_path / 'x.safetensors', run=False, say=log.append)
    (line,) = (line for line in log if 'left out' in line)
    assert line.endswith(': lm_head.weight; mask_token')


def test_hugging_faces_config_says_how_the_model_is_built(files, tmp_path):
    contents = {}
    for name in ('fine_tuned', 'pretrained'):
        convert(files[name], tmp_path / name, run=False, say=silent)
        contents[name] = json.loads((tmp_path / name / 'config.json').read_text())
        assert contents[name]['model_type'] == 'beit'
    tuned, pretrained = contents['fine_tuned'], contents['pretrained']
    assert tuned['architectures'] == ['BeitForImageClassification']
    assert tuned['use_relative_position_bias'] and not tuned['use_shared_relative_position_bias']
    assert tuned['use_mean_pooling'] and not pretrained['use_mean_pooling']
    assert pretrained['use_shared_relative_position_bias']


def test_an_encoder_for_another_size_has_the_tables_of_beits_interpolation(files):
    encoder, params = mae_jax.load_encoder(files['pretrained'], image_size=(16, 24))
    table = beit.weights(beit.CASES['pretrained'])['rel_pos_bias.relative_position_bias_table']
    for block in params['blocks'].values():
        expected = resize_table(table, (4, 4), (4, 6))
        np.testing.assert_array_equal(block['attention']['relative_table'], expected)
    images = np.zeros((1, 16, 24, 3), np.float32)
    features = encoder.apply({'params': params}, images, method='features', output='map')
    assert features.shape == (1, 4, 6, beit.WIDTH)


@pytest.mark.parametrize('size', [(32, 32), (16, 20)])
def test_a_file_of_another_size_is_refused_in_one_sentence(size, files, tmp_path):
    with pytest.raises(UserError) as refusal:
        convert(files['fine_tuned'], tmp_path / 'x', run=False, given={'image_size': size})
    message = str(refusal.value)
    assert 'relative positions of 52 rows' in message and message.count('. ') == 0
    assert f'{size[0]} x {size[1]} of patches of 4 x 4 pixels' in message
    assert not (tmp_path / 'x').exists()


def test_blocks_with_tables_of_other_sizes_are_listed(files, tmp_path):
    tensors = safetensors.numpy.load_file(files['fine_tuned'])
    name = 'blocks.1.attn.relative_position_bias_table'
    tensors[name] = tensors[name][:30]
    safetensors.numpy.save_file(tensors, tmp_path / 'x.safetensors')
    with pytest.raises(UserError, match=r'blocks.1.attn.relative.*has shape \(30, 3\), not \(52'):
        read_model(tmp_path / 'x.safetensors')


def test_options_without_a_counterpart_are_refused(files, tmp_path):
    convert(files['pretrained'], tmp_path / 'x.safetensors', run=False, say=silent)
    with pytest.raises(UserError, match=r"'augreg' has no place for model.*convert to 'mae_jax'"):
        convert(tmp_path / 'x.safetensors', tmp_path / 'x.npz', run=False, say=silent)


def test_the_config_of_a_file_states_its_options(files):
    model = read_config(files['fine_tuned']).model
    assert model.relative_positions == 'beit' and model.layer_scale == 0.1
    assert not model.key_bias and not model.absolute_positions
    assert model.pool == 'mean'


def test_a_classifier_is_loaded_with_its_head(files):
    model, params = mae_jax.load(files['fine_tuned'])
    logits = jax.jit(model.apply)({'params': params}, beit.images(beit.CASES['fine_tuned']))
    np.testing.assert_allclose(logits, golden('fine_tuned'), rtol=1e-4, atol=2e-5)


def test_the_golden_beit_is_that_of_the_library_that_is_installed():
    make_beit = pytest.importorskip('make_beit')
    for name, case in beit.CASES.items():
        np.testing.assert_allclose(make_beit.outputs(case), golden(name), atol=1e-6)
