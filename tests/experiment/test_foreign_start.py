"""`init_from`: models of other libraries, and of images with other channels."""

import json

import numpy as np
import pytest
import vitmae
from helpers.official_files import SQUARE, save_official
from helpers.tiny_runs import PLAIN, classifying, flat, pretraining, start

from configs import finetune, knn
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.run import run
from mae_jax.experiment.setup import make_setup
from mae_jax.interop.convert import convert

GREY = {
    'dataset.name': 'digits',
    'dataset.channels': 1,
    'dataset.mean': (0.305,),
    'dataset.std': (0.376,),
}
WEIGHTS = vitmae.weights(SQUARE)


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    """A ViTMAE of Hugging Face for RGB, with an epsilon of its own."""
    folder = tmp_path_factory.mktemp('foreign')
    path, _ = save_official(folder / 'square.safetensors', SQUARE)
    given = {'heads': 3, 'decoder_heads': 2}
    convert(path, folder / 'hub', given=given, run=False, say=lambda line: None)
    content = json.loads((folder / 'hub/config.json').read_text())
    content['layer_norm_eps'] = 1e-5
    (folder / 'hub/config.json').write_text(json.dumps(content))
    return folder / 'hub'


def of_channels(weight, how, new):
    """Mixes the channels of a convolution [D, C, P, P] as `new_channels` says; [D, new, P, P]."""
    old = weight.shape[1]
    if how == 'average':
        return np.stack([weight.sum(axis=1) / new] * new, axis=1)
    return np.stack([weight[:, c % old] * old / new for c in range(new)], axis=1)


@pytest.mark.parametrize(('how', 'channels'), [('average', 1), ('repeat', 4)])
def test_fine_tuning_starts_from_a_directory_of_hugging_face(hub, tmp_path, capsys, how, channels):
    fields = GREY | {
        'dataset.channels': channels,
        'dataset.mean': (0.305,) * channels,
        'dataset.std': (0.376,) * channels,
        'new_channels': how,
    }
    config = classifying(finetune.get_config, hub, fields)
    actual = flat(start(config, tmp_path / 'run').params)
    weight = WEIGHTS['vit.embeddings.patch_embeddings.projection.weight']
    expected = of_channels(weight, how, channels)
    kernel = actual['encoder/patch_embed/kernel'].reshape(4, 4, channels, 12)
    np.testing.assert_allclose(kernel.transpose(3, 2, 0, 1), expected, atol=1e-6)
    name = 'vit.layers.1.mlp.fc1.weight'
    np.testing.assert_array_equal(actual['encoder/blocks/block_1/mlp/fc1/kernel'], WEIGHTS[name].T)
    assert f'patches of 3 channels adapted to {channels}' in capsys.readouterr().out
    model = make_setup(inherit(config, tmp_path / 'run'), tmp_path / 'run').task.model
    assert (model.norm_eps, model.heads) == (1e-5, 3)


@pytest.mark.parametrize('how', ['average', 'repeat'])
def test_pretraining_goes_on_with_the_prediction_of_other_channels(hub, tmp_path, how):
    sizes = {'patch_size': 4, 'width': 12, 'depth': 2, 'heads': 3}
    sizes |= {'decoder_width': 8, 'decoder_depth': 1, 'decoder_heads': 2}
    fields = GREY | {f'model.{name}': size for name, size in sizes.items()}
    config = pretraining(**fields, init_from=str(hub), new_channels=how)
    actual = flat(start(config, tmp_path / 'run').params)
    weight = WEIGHTS['decoder.decoder_pred.weight'].reshape(16, 3, 8)
    expected = weight.mean(axis=1) if how == 'average' else weight[:, 0]
    np.testing.assert_allclose(actual['decoder/head/kernel'], expected.T, atol=1e-6)
    bias = WEIGHTS['decoder.decoder_pred.bias'].reshape(16, 3)
    expected = bias.mean(axis=1) if how == 'average' else bias[:, 0]
    np.testing.assert_allclose(actual['decoder/head/bias'], expected, atol=1e-6)


def test_a_wrong_way_to_adapt_is_named(hub, tmp_path):
    config = classifying(finetune.get_config, hub, GREY | {'new_channels': 'mean'})
    with pytest.raises(UserError, match=r"new_channels='mean': choose average or repeat"):
        start(config, tmp_path)


def test_the_data_set_of_a_foreign_model_must_be_given(hub, tmp_path):
    with pytest.raises(UserError, match=r'dataset\.name must be given'):
        inherit(classifying(finetune.get_config, hub), tmp_path)


def test_a_frozen_encoder_of_hugging_face_is_evaluated(hub, tmp_path):
    config = knn.get_config()
    config.init_from = str(hub)
    config.update_from_flattened_dict(GREY | {'new_channels': 'average', 'knn.shots': ()})
    assert run(config, tmp_path)['knn'] > 0.5


@pytest.mark.slow
def test_a_fine_tuned_run_from_hugging_face_is_loaded_with_its_epsilon(hub, tmp_path):
    import mae_jax

    fields = GREY | PLAIN | {'new_channels': 'average', 'num_steps': 1}
    run(classifying(finetune.get_config, hub, fields), tmp_path / 'run')
    assert mae_jax.load(tmp_path / 'run')[0].norm_eps == 1e-5
