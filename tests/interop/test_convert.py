"""`mae-jax convert` of good input: what is written is what was read."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy
import vitmae
from helpers.official_files import CASE, OPTIONS, SQUARE_OPTIONS

from mae_jax.interop.trained import read_trained


def test_official_to_ours_is_the_golden_tree(run, official, tmp_path):
    status, output = run('convert', official[0], tmp_path / 'ours.safetensors', *OPTIONS)
    assert status == 0, output
    assert 'assumed' in output and 'mask_ratio=0.75' in output and 'heads=' not in output
    trained = read_trained(tmp_path / 'ours.safetensors')
    expected = vitmae.to_tree(CASE, vitmae.weights(CASE))
    assert jax.tree.structure(trained.params) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, trained.params, expected))
    assert trained.config.image_size == (8, 24)


def test_round_trips_through_files_lose_nothing(run, square, tmp_path):
    path, tensors = square
    for source, destination in (
        (path, 'ours.safetensors'),
        (path, 'hub'),
        (tmp_path / 'ours.safetensors', 'hub_of_ours'),
    ):
        status, output = run('convert', source, tmp_path / destination, *SQUARE_OPTIONS)
        assert status == 0, output
    for middle in ('ours.safetensors', 'hub', 'hub_of_ours'):
        back = tmp_path / f'back_from_{middle}.safetensors'
        status, output = run('convert', tmp_path / middle, back, '--to', 'official', '--no_run')
        assert status == 0, output
        again = safetensors.numpy.load_file(back)
        assert again.keys() == tensors.keys()
        assert all(again[name].tobytes() == tensors[name].tobytes() for name in tensors)


def test_a_run_exported_keeps_step_and_config_but_no_paths(run, pretrained, tmp_path):
    workdir, state = pretrained
    status, output = run('convert', workdir, tmp_path / 'model.safetensors')
    assert status == 0 and 'step 4' in output, output
    with safetensors.safe_open(tmp_path / 'model.safetensors', 'numpy') as file:
        header = json.loads(file.metadata()['mae_jax'])
    config = json.loads(header['config'])
    original = json.loads((workdir / 'config.json').read_text())
    assert header['step'] == 4 and config['mask'] == original['mask']
    assert config['dataset']['mean'] == original['dataset']['mean']
    assert str(workdir) not in header['config']
    trained = read_trained(tmp_path / 'model.safetensors')
    assert jax.tree.all(jax.tree.map(np.array_equal, trained.params, dict(state.params)))
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / 'model.safetensors').stat().st_mode & 0o777 == 0o666 & ~umask


def test_encoder_alone_leaves_the_rest_out(run, pretrained, tmp_path):
    path = tmp_path / 'encoder.npz'
    status, output = run('convert', pretrained[0], path)
    assert status == 1 and 'no place for decoder' in output and '--encoder_only' in output
    assert run('convert', pretrained[0], path, '--encoder_only', '--no_run')[0] == 0
    assert 'Transformer/encoder_norm/scale' in np.load(path).files


def test_an_encoder_without_norm_goes_only_where_none_is_needed(run, fine_tuned, tmp_path):
    status, output = run('convert', fine_tuned[0], tmp_path / 'x.npz', '--encoder_only')
    assert status == 1 and 'mean pooling' in output
    assert run('convert', fine_tuned[0], tmp_path / 'x.safetensors', '--encoder_only')[0] == 0
    assert set(read_trained(tmp_path / 'x.safetensors').params) == {'encoder'}


def test_a_file_contains_no_paths_of_the_machine_it_was_made_on(run, fine_tuned, tmp_path):
    assert fine_tuned[2].init_from  # a path in the config of the run
    assert run('convert', fine_tuned[0], tmp_path / 'x.safetensors')[0] == 0
    header = (tmp_path / 'x.safetensors').read_bytes()[:20_000]
    assert b'dataset' in header and str(fine_tuned[0].parent).encode() not in header


def test_classifier_keeps_its_averaged_weights(run, fine_tuned, tmp_path):
    path = tmp_path / 'x.safetensors'
    assert run('convert', fine_tuned[0], path, '--to', 'timm', '--no_run')[0] == 0
    tensors = safetensors.numpy.load_file(path)
    expected = np.asarray(fine_tuned[1].ema['head']['kernel']).T
    assert np.array_equal(tensors['head.weight'], expected)
    assert 'fc_norm.weight' in tensors and 'norm.weight' not in tensors


def test_hyperparameters_of_our_own_files_can_be_overridden(run, square, tmp_path):
    first, second = tmp_path / 'x.safetensors', tmp_path / 'y.safetensors'
    assert run('convert', square[0], first, *SQUARE_OPTIONS)[0] == 0
    values = ('--target', 'pixel', '--mask_ratio', 0.5, '--mean', 0.5, 0.5, 0.5, '--heads', 2)
    status, output = run('convert', first, second, *values)
    assert status == 0, output
    config = read_trained(second).config
    assert config.target.name == 'pixel' and config.mask.ratio == 0.5
    assert config.dataset.mean == (0.5, 0.5, 0.5) and config.model.heads == 2


@pytest.mark.parametrize('words', [('--help',), ('convert', '--help')])
def test_help_lists_commands_and_formats(run, words):
    status, output = run(*words)
    expected = ('huggingface', 'big_vision') if words[0] == 'convert' else ('convert', 'visualize')
    assert status == 0 and all(word in output for word in expected)
