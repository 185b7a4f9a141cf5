"""Runs whose encoder has options: what they take of `init_from`, add, leave out and refuse."""

import re

import beit
import numpy as np
import pytest
import safetensors.numpy
from helpers.slow import slow_after
from helpers.tiny_runs import PLAIN, classifying, flat, start

from configs import finetune, knn, linprobe, partial
from mae_jax.config.changes import changed_fields
from mae_jax.config.saved import from_json, to_json
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.run import run
from mae_jax.experiment.setup import make_setup
from mae_jax.models.options import EncoderOptions
from mae_jax.models.relative import resize_table

GREY = {
    'dataset.name': 'digits',
    'dataset.channels': 1,
    'dataset.mean': (0.305,),
    'dataset.std': (0.376,),
    'new_channels': 'average',
}
TABLE = 'rel_pos_bias.relative_position_bias_table'


@pytest.fixture(scope='module')
def pretrained_beit(tmp_path_factory):
    """A file with BEiT's names, for images of 16 x 16 in patches of 4 x 4."""
    path = tmp_path_factory.mktemp('beit') / 'beit_pt22k.safetensors'
    safetensors.numpy.save_file(beit.weights(beit.CASES['pretrained']), path)
    return path


def options_of(config, workdir) -> EncoderOptions:
    return make_setup(inherit(config, workdir), workdir).task.model.options


def test_what_options_add_starts_at_its_initial_values(pretrained, tmp_path, capsys):
    fields = {'model.relative_positions': 'beit', 'model.layer_scale': 0.5}
    config = classifying(finetune.get_config, pretrained[0], fields)
    actual, before = flat(start(config, tmp_path).params), flat(pretrained[1].params)
    block = 'encoder/blocks/block_1'
    assert actual[f'{block}/attention/relative_table'].shape == (7 * 7 + 3, 4)
    assert not actual[f'{block}/attention/relative_table'].any()
    assert (actual[f'{block}/mlp_scale'] == 0.5).all()
    name = f'{block}/attention/qkv/kernel'
    np.testing.assert_array_equal(actual[name], before[name])
    (line,) = re.findall('left at their initial values: (.*)', capsys.readouterr().out)
    assert line == 'encoder/blocks, fc_norm, head'


def test_an_encoder_of_patches_alone_leaves_the_cls_token_and_its_position(
    pretrained, tmp_path, capsys
):
    fields = {
        'model.relative_positions': 'vitdet',
        'model.cls_token': False,
        'model.window': 3,
        'model.global_blocks': (1,),
        'image_size': (12, 8),
    }
    config = classifying(finetune.get_config, pretrained[0], fields)
    actual, before = flat(start(config, tmp_path).params), flat(pretrained[1].params)
    assert 'encoder/cls_token' not in actual
    assert actual['encoder/pos_embed'].shape == (1, 24, 16)
    assert actual['encoder/blocks/block_1/attention/rel_pos_h'].shape == (11, 4)
    assert actual['encoder/blocks/block_0/attention/rel_pos_h'].shape == (5, 4)
    corner = before['encoder/pos_embed'][0, 4]  # of the first row, whose columns stay four
    assert np.abs(actual['encoder/pos_embed'][0, 3] - corner).max() < 0.2
    assert re.findall('ignored: (.*)', capsys.readouterr().out) == [
        'decoder, encoder/cls_token, encoder/norm'
    ]


def test_without_a_bias_of_keys_that_of_the_pretrained_ones_is_dropped(pretrained, tmp_path):
    config = classifying(finetune.get_config, pretrained[0], {'model.key_bias': False})
    name = 'encoder/blocks/block_0/attention/qkv/bias'
    before = flat(pretrained[1].params)[name].reshape(3, 16)
    bias = flat(start(config, tmp_path).params)[name].reshape(3, 16)
    assert before[1].any() and not bias[1].any()
    np.testing.assert_array_equal(bias[::2], before[::2])


@pytest.mark.parametrize('recipe', [finetune, linprobe, partial])
def test_a_run_has_the_options_and_statistics_of_a_beit_file(recipe, pretrained_beit, tmp_path):
    config = recipe.get_config()
    config.init_from, config.dataset.name = str(pretrained_beit), 'imagenet2012'
    model = inherit(config, tmp_path)
    assert model.dataset.mean == model.dataset.std == (0.5, 0.5, 0.5)
    assert tuple(model.image_size) == (16, 16)
    actual = options_of(classifying(recipe.get_config, pretrained_beit, GREY), tmp_path)
    assert actual == EncoderOptions('beit', 0.1, key_bias=False, absolute_positions=False)


@pytest.mark.parametrize(
    ('recipe', 'trained'), slow_after(1, [(partial, (1,)), (finetune, (0, 1)), (linprobe, ())])
)
def test_beits_encoder_is_trained_by_the_same_recipes(recipe, trained, pretrained_beit, tmp_path):
    config = classifying(recipe.get_config, pretrained_beit, GREY | PLAIN | {'num_steps': 2})
    params = flat(run(config, tmp_path).params)
    table = beit.weights(beit.CASES['pretrained'])[TABLE]
    for i in range(beit.DEPTH):
        block = f'encoder/blocks/block_{i}'
        moved = not np.array_equal(params[f'{block}/attention/relative_table'], table)
        assert moved == (i in trained), block
        assert not params[f'{block}/attention/qkv/bias'].reshape(3, -1)[1].any()


def test_beits_encoder_is_evaluated_by_k_nn(pretrained_beit, tmp_path):
    config = knn.get_config()
    config.init_from = str(pretrained_beit)
    config.update_from_flattened_dict(GREY | {'knn.shots': ()})
    assert run(config, tmp_path)['knn'] > 0.5


def test_beits_tables_are_resized_on_their_own_grid(pretrained_beit, tmp_path, capsys):
    config = classifying(finetune.get_config, pretrained_beit, GREY | {'image_size': (24, 16)})
    actual = flat(start(config, tmp_path).params)
    table = beit.weights(beit.CASES['pretrained'])[TABLE]
    for i in range(beit.DEPTH):
        np.testing.assert_array_equal(
            actual[f'encoder/blocks/block_{i}/attention/relative_table'],
            resize_table(table, (4, 4), (6, 4)),
        )
    assert 'positions resized from 4 x 4 to 6 x 4 patches' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'model.relative_positions': 'none'}, r'attention/relative_table: \(52, 3\) there, miss'),
        ({'model.absolute_positions': True}, r'encoder/pos_embed: missing there'),
        ({'model.relative_positions': 'swin'}, r"relative_positions='swin' is unknown"),
        ({'model.window': 2}, r'add model\.cls_token=False'),
        ({'model.global_blocks': (2,)}, r'there is no block 2 among the 2'),
    ],
)
def test_options_that_the_encoder_was_not_trained_with_are_refused(
    fields, message, pretrained_beit, tmp_path
):
    config = classifying(finetune.get_config, pretrained_beit, GREY | fields)
    with pytest.raises(UserError, match=message):
        start(config, tmp_path)


def test_a_config_of_an_earlier_version_lacks_the_fields_and_may_go_on(pretrained, tmp_path):
    config = inherit(classifying(finetune.get_config, pretrained[0]), tmp_path)
    earlier = from_json(to_json(config))
    for field in ('relative_positions', 'layer_scale', 'key_bias', 'absolute_positions'):
        del earlier.model[field]
    for field in ('cls_token', 'window', 'global_blocks'):
        del earlier.model[field]
    assert changed_fields(earlier, config) == {}
    config.model.layer_scale = 0.1
    assert list(changed_fields(earlier, config)) == ['model.layer_scale']
