"""`init_from`: the weights that a run starts with, and what it prints about them."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers.tiny_runs import PLAIN, SIZES, classifying, flat, make_image_folder, pretraining, start

from configs import finetune, linprobe
from mae_jax.checkpoints.find import locate
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.run import run
from mae_jax.experiment.setup import make_setup
from mae_jax.experiment.starting_weights import load_weights
from mae_jax.interop.convert import convert
from mae_jax.training.state import abstract_state


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """Initial values of a classifier of the pretrained model's sizes, mean pooling."""
    config = classifying(finetune.get_config, None, SIZES)
    return flat(start(config, tmp_path_factory.mktemp('untrained')).params)


def encoder_of(params):
    return {name: value for name, value in params.items() if name.startswith('encoder/')}


def test_fine_tuning_takes_the_encoder_and_starts_its_head_anew(
    pretrained, untrained, tmp_path, capsys
):
    workdir, state = pretrained
    actual = flat(start(classifying(finetune.get_config, workdir), tmp_path).params)
    expected = encoder_of(flat(state.params))
    del expected['encoder/norm/scale'], expected['encoder/norm/bias']  # mean pooling has its own
    assert encoder_of(actual).keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    assert not np.array_equal(
        actual['encoder/patch_embed/kernel'], untrained['encoder/patch_embed/kernel']
    )
    new = {'head/kernel', 'head/bias', 'fc_norm/scale', 'fc_norm/bias'}
    assert actual.keys() - expected.keys() == new
    for name in new:
        np.testing.assert_array_equal(actual[name], untrained[name], err_msg=name)

    text = capsys.readouterr().out
    assert re.findall('loaded: (.*)', text) == ['encoder']
    assert re.findall('left at their initial values: (.*)', text) == ['fc_norm, head']
    assert re.findall('ignored: (.*)', text) == ['decoder, encoder/norm']
    assert f'starting from {workdir}, step 4' in text


def test_cls_pooling_takes_the_encoders_final_norm(pretrained, tmp_path, capsys):
    workdir, state = pretrained
    actual = flat(start(classifying(linprobe.get_config, workdir), tmp_path).params)
    expected = encoder_of(flat(state.params))
    assert encoder_of(actual).keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    text = capsys.readouterr().out
    assert re.findall('ignored: (.*)', text) == ['decoder']
    assert re.findall('left at their initial values: (.*)', text) == ['batch_stats, head']


def test_a_checkpoint_may_be_named_instead_of_a_directory(pretrained, tmp_path, capsys):
    older = pretrained[0] / 'checkpoints' / '2'
    actual = flat(start(classifying(finetune.get_config, older), tmp_path).params)
    expected = flat(restore_weights(*locate(older)).params)
    name = 'encoder/blocks/block_1/mlp/fc1/kernel'
    np.testing.assert_array_equal(actual[name], expected[name])
    assert not np.array_equal(actual[name], flat(pretrained[1].params)[name])
    assert 'step 2;' in capsys.readouterr().out


def test_a_converted_file_may_be_named_with_data_of_ones_own(pretrained, tmp_path, capsys):
    workdir, state = pretrained
    convert(workdir, tmp_path / 'encoder.safetensors', encoder_only=True)
    config = classifying(finetune.get_config, tmp_path / 'encoder.safetensors')
    config.dataset.name = 'digits'
    actual = flat(start(config, tmp_path / 'run').params)
    expected = encoder_of(flat(state.params))
    del expected['encoder/norm/scale'], expected['encoder/norm/bias']
    assert encoder_of(actual).keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    text = capsys.readouterr().out
    assert 'encoder.safetensors, step 4; loaded: encoder\n' in text
    assert re.findall('ignored: (.*)', text) == ['encoder/norm']


def test_positions_are_resized_for_another_image_size(pretrained, tmp_path, capsys):
    config = classifying(finetune.get_config, pretrained[0], {'image_size': (12, 8)})
    actual = flat(start(config, tmp_path).params)['encoder/pos_embed']
    before = flat(pretrained[1].params)['encoder/pos_embed']
    assert 'positions resized from 4 x 4 to 6 x 4 patches' in capsys.readouterr().out
    assert actual.shape == (1, 1 + 6 * 4, 16)
    np.testing.assert_array_equal(actual[0, 0], before[0, 0])  # the class token's
    rows, old_rows = actual[0, 1:].reshape(6, 4, 16), before[0, 1:].reshape(4, 4, 16)
    # Six rows over four: each new one lies at (i + .5) * 4 / 6 - .5 among the old.
    between = np.stack(
        [np.interp((np.arange(6) + 0.5) * 4 / 6 - 0.5, range(4), line) for line in old_rows.T[0]]
    )
    np.testing.assert_allclose(rows[:, :, 0].T, between, atol=0.1)
    assert np.abs(rows - np.roll(rows, 1, axis=0)).max() > 0.1


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'model.width': 32},
            r'model\.width: 16 there, 32 here; encoder/\S+: \(16,\) there, \(32,\) here',
        ),
        ({'model.depth': 3}, r'encoder/blocks/block_2/\S+: missing there, \(16,\) here'),
        ({'model.depth': 1}, r'encoder/blocks/block_1/\S+: \(16,\) there, missing here'),
        ({'model.patch_size': 4}, r'encoder/patch_embed/kernel: \(4, 16\) there, \(16, 16\) here'),
        ({'model.heads': 2}, r'model\.heads: 4 there, 2 here'),
        (
            {'dataset.channels': 3, 'dataset.mean': (0.5,) * 3, 'dataset.std': (0.5,) * 3},
            r'trained on 1 channel\(s\), where dataset\.channels=3: give --config\.new_channels',
        ),
    ],
)
def test_another_architecture_is_shown_by_the_shapes_that_differ(
    pretrained, tmp_path, fields, message
):
    config = inherit(classifying(finetune.get_config, pretrained[0], fields), tmp_path)
    setup = make_setup(config, tmp_path)
    initial = abstract_state(setup.task, setup.optimizer, setup.mesh)  # shapes are enough
    with pytest.raises(UserError, match=message) as caught:
        load_weights(
            config.init_from,
            config,
            initial.params,
            initial.model_state,
            required=setup.task.is_required,
        )
    assert str(pretrained[0]) in str(caught.value) and '\n' not in str(caught.value)


def test_another_architecture_ends_a_run_before_its_first_step(pretrained, tmp_path):
    config = classifying(finetune.get_config, pretrained[0], {'model.width': 32})
    with pytest.raises(UserError, match=r'model\.width: 16 there, 32 here'):
        run(config, tmp_path)


@pytest.mark.parametrize('there', [False, True])
def test_a_path_that_is_no_run_is_named(tmp_path, there):
    path = tmp_path / 'nowhere'
    if there:
        path.mkdir()  # nor does it hold weights of another library
    with pytest.raises(UserError, match=f'{path} is neither a work directory nor'):
        run(classifying(finetune.get_config, path), tmp_path / 'run')


@pytest.mark.slow
def test_a_mended_mistake_needs_no_other_work_directory(pretrained, tmp_path):
    workdir = tmp_path / 'run'
    fields = PLAIN | {'num_steps': 1}
    wrong = classifying(finetune.get_config, pretrained[0], fields | {'model.width': 32})
    with pytest.raises(UserError, match='another model'):
        run(wrong, workdir)
    state = run(classifying(finetune.get_config, pretrained[0], fields), workdir)
    assert int(state.step) == 1


def test_what_is_unset_is_inherited_and_the_source_is_needed_no_longer(
    fine_tuned, tmp_path, capsys
):
    workdir, state, config = fine_tuned
    workdir = shutil.copytree(workdir, tmp_path / 'run')
    kept = json.loads((workdir / 'config.json').read_text())
    assert kept['image_size'] == [8, 8]
    sizes = {'variant': 'vit_tiny', 'patch_size': 2, 'width': 16, 'depth': 2, 'heads': 4}
    assert {name: kept['model'][name] for name in sizes} == sizes
    data = {'name': 'digits', 'channels': 1, 'scale': 255.0, 'mean': [0.305], 'std': [0.376]}
    assert {name: kept['dataset'][name] for name in data} == data

    again = run(config, workdir)  # finished, but with all that a start looks at
    assert 'resuming at step 6' in capsys.readouterr().out
    for name, value in flat(state.params).items():
        np.testing.assert_array_equal(value, flat(again.params)[name], err_msg=name)


def test_with_nothing_to_inherit_from_the_fields_are_named(tmp_path):
    with pytest.raises(UserError) as caught:
        run(classifying(finetune.get_config, None), tmp_path)
    for field in (
        'image_size',
        'model.variant',
        'dataset.name',
        'dataset.mean',
        '--config.init_fr',
    ):
        assert field in str(caught.value)
    fields = {name: value for name, value in SIZES.items() if name != 'dataset.mean'}
    with pytest.raises(UserError, match=r'^dataset\.mean must be given'):
        run(classifying(finetune.get_config, None, fields), tmp_path)


def test_a_classifier_is_taken_over_whole_and_by_its_averages(fine_tuned, tmp_path, capsys):
    workdir, state, _ = fine_tuned
    actual = flat(start(classifying(finetune.get_config, workdir), tmp_path).params)
    assert actual.keys() == flat(state.ema).keys()
    for name, value in flat(state.ema).items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    assert not np.array_equal(actual['head/kernel'], flat(state.params)['head/kernel'])
    text = capsys.readouterr().out
    assert 'left at their initial values: nothing' in text and 'ignored: nothing' in text


def test_a_head_for_other_classes_is_left_and_listed(fine_tuned, tmp_path, capsys):
    for split in ('train', 'val'):
        make_image_folder(tmp_path / 'images' / split, 'abc')
    fields = {'dataset.name': 'folder', 'dataset.path': str(tmp_path / 'images')}
    config = classifying(finetune.get_config, fine_tuned[0], fields)
    actual = flat(start(config, tmp_path / 'run').params)
    assert actual['head/kernel'].shape == (16, 3)
    assert np.abs(actual['head/kernel']).max() < 1e-4  # N(0, 2e-5), as it was drawn
    for name in ('fc_norm/scale', 'encoder/cls_token'):
        np.testing.assert_array_equal(actual[name], flat(fine_tuned[1].ema)[name], err_msg=name)
    text = capsys.readouterr().out
    assert re.findall('left at their initial values: (.*)', text) == ['head']
    assert re.findall('ignored: (.*)', text) == ['head']


def test_pretraining_goes_on_from_pretraining_whole(pretrained, tmp_path, capsys):
    actual = flat(start(pretraining(init_from=str(pretrained[0])), tmp_path).params)
    for name, value in flat(pretrained[1].params).items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    assert 'loaded: decoder, encoder\n' in capsys.readouterr().out
