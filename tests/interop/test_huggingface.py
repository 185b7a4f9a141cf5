"""JSON files of Hugging Face: written, read, and refused if the model would differ."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import vitmae
from helpers.official_files import OPTIONS, SQUARE

from mae_jax.interop.trained import read_trained


def change_json(path, changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_directory_describes_the_model(run, pretrained, tmp_path):
    assert run('convert', pretrained[0], tmp_path / 'hub', '--no_run')[0] == 0
    config = json.loads((tmp_path / 'hub' / 'config.json').read_text())
    preprocessor = json.loads((tmp_path / 'hub' / 'preprocessor_config.json').read_text())
    assert config['architectures'] == ['ViTMAEForPreTraining']
    assert config['norm_pix_loss'] is False and config['layer_norm_eps'] == 1e-6
    assert (config['num_hidden_layers'], config['hidden_size'], config['image_size']) == (2, 16, 8)
    assert preprocessor['image_mean'] == [0.305] and preprocessor['rescale_factor'] == 1 / 255


@pytest.mark.parametrize(
    ('field', 'value'),
    [('num_attention_heads', 'twelve'), ('image_size', [[8], 24]), ('mask_ratio', 2.0)],
)
def test_an_impossible_value_in_a_config_is_refused(run, hub, tmp_path, field, value):
    change_json(hub / 'config.json', {field: value})
    status, output = run('convert', hub, tmp_path / 'x.safetensors')
    assert status == 1 and str(value) in output and 'Traceback' not in output


def test_other_activations_are_refused(run, hub, tmp_path):
    change_json(hub / 'config.json', {'hidden_act': 'relu'})
    status, output = run('convert', hub, tmp_path / 'x.safetensors')
    assert status == 1 and "hidden_act='relu'" in output


@pytest.mark.parametrize(
    ('preprocessor', 'expected'),
    [
        ({'rescale_factor': 1 / 65535}, (65535.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({'do_rescale': False}, (1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({'do_normalize': False}, (255.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ({'image_mean': [0.5] * 3}, (255.0, (0.5, 0.5, 0.5), (0.229, 0.224, 0.225))),
    ],
)
def test_the_normalisation_of_images_is_read_and_written(
    run, hub, tmp_path, preprocessor, expected
):
    change_json(hub / 'preprocessor_config.json', preprocessor)
    path = hub
    for destination in ('hub2', 'x.safetensors'):
        status, output = run('convert', path, tmp_path / destination, '--no_run')
        assert status == 0 and 'mean' not in output, output
        path = tmp_path / destination
    data = read_trained(path).config.dataset
    assert (data.scale, data.mean, data.std) == expected


def test_a_sharded_directory_is_read_completely_and_nothing_beside_it(run, hub, tmp_path):
    tensors = safetensors.numpy.load_file(hub / 'model.safetensors')
    shards = {name: f'model-{n % 2}.safetensors' for n, name in enumerate(tensors)}
    for shard in set(shards.values()):
        content = {name: tensors[name] for name in tensors if shards[name] == shard}
        safetensors.numpy.save_file(content, hub / shard)
    (hub / 'model.safetensors').rename(tmp_path / 'official.safetensors')
    index = hub / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': shards}))
    status, output = run('convert', hub, tmp_path / 'x.safetensors', '--no_run')
    assert status == 0 and 'assumed' not in output, output
    expected = vitmae.to_tree(SQUARE, vitmae.weights(SQUARE))
    params = read_trained(tmp_path / 'x.safetensors').params
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))
    index.write_text(json.dumps({'weight_map': dict.fromkeys(shards, '../official.safetensors')}))
    status, output = run('convert', hub, tmp_path / 'y.safetensors', '--no_run')
    assert status == 1 and 'official.safetensors' in output


def test_the_autoencoder_takes_no_rectangles(run, official, tmp_path):
    status, output = run('convert', official[0], tmp_path / 'hub', *OPTIONS)
    assert status == 1 and 'squares' in output and not (tmp_path / 'hub').exists()
    assert run('convert', official[0], tmp_path / 'hub', *OPTIONS, '--encoder_only')[0] == 0
