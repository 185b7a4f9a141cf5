"""`mae-jax convert` of bad input: a sentence that names what is wrong, and nothing written."""

import sys

import numpy as np
import pytest
import safetensors.numpy
from helpers import hostile_files
from helpers.official_files import OPTIONS, SQUARE_OPTIONS


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t.pop('norm.bias'), 'norm.bias is missing'),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), 'extra is unknown'),
        (lambda t: t.pop('blocks.0.attn.qkv.bias'), 'blocks.0.attn.qkv.bias is missing'),
        (lambda t: t.update({'norm.bias': np.zeros(5, np.float32)}), r'norm.bias has shape (5,)'),
        (lambda t: t.update({'norm.bias': np.zeros(12, np.int32)}), 'int32'),
        (lambda t: t.update({'norm.bias': np.zeros(12)}), 'float64'),
        (lambda t: t.pop('cls_token'), 'cls_token is missing'),
        (lambda t: t.pop('mask_token'), 'mask_token is missing'),
        (lambda t: t.update(pos_embed=np.zeros((1, 12, 12), np.float32)), '11 positions'),
        (lambda t: t.pop('patch_embed.proj.weight'), 'no Vision Transformer'),
    ],
)
def test_a_tensor_too_few_or_too_many_is_named(run, official, tmp_path, change, message):
    path, tensors = official
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    status, output = run('convert', path, tmp_path / 'ours.safetensors', *OPTIONS)
    assert status == 1 and message in output and 'Traceback' not in output
    assert not (tmp_path / 'ours.safetensors').exists()


def test_hyperparameters_that_cannot_be_derived_are_asked_for(run, official, tmp_path):
    given = ()
    for missing, value in (('--image_size', (8, 24)), ('--heads', (3,)), ('--decoder_heads', (2,))):
        status, output = run('convert', official[0], tmp_path / 'ours.safetensors', *given)
        assert status == 1 and f'give {missing}' in output
        given += (missing, *value)
    assert run('convert', official[0], tmp_path / 'ours.safetensors', *given, '--no_run')[0] == 0


@pytest.mark.parametrize(
    'values',
    [('--mean', 0.5), ('--std', 0, 0, 0), ('--heads', 0), ('--heads', 5), ('--mask_ratio', 1.0)],
)
def test_impossible_hyperparameters_are_refused(run, square, tmp_path, values):
    status, output = run('convert', square[0], tmp_path / 'x.safetensors', *SQUARE_OPTIONS, *values)
    assert status == 1 and values[0][2:].replace('_', '.').split('.')[0] in output, output
    assert 'Traceback' not in output


def test_tensors_of_a_distilled_model_are_named(run, square, tmp_path):
    path, tensors = square
    tensors['dist_token'] = tensors['cls_token']
    tensors['pos_embed'] = np.concatenate([tensors['pos_embed'][:, :1], tensors['pos_embed']], 1)
    safetensors.numpy.save_file(tensors, path)
    status, output = run('convert', path, tmp_path / 'x.safetensors', *SQUARE_OPTIONS)
    assert status == 1 and 'dist_token is unknown' in output


@pytest.mark.parametrize('make', hostile_files.PTH + hostile_files.OTHERS)
def test_a_damaged_or_hostile_file_ends_in_a_sentence(run, tmp_path, make):
    path = make(tmp_path)
    status, output = run('convert', path, tmp_path / 'ours.safetensors')
    assert status == 1 and output.startswith(f'error: {path}') and 'Traceback' not in output
    assert len(output.strip().splitlines()) <= 2, output
    assert not (tmp_path / 'ran').exists() and not (tmp_path / 'ours.safetensors').exists()


def test_an_existing_destination_is_kept_without_overwrite(run, official, tmp_path):
    path = tmp_path / 'ours.safetensors'
    path.write_text('mine')
    status, output = run('convert', official[0], path, *OPTIONS)
    assert status == 1 and '--overwrite' in output and path.read_text() == 'mine'
    official[0].write_text('not a model')
    assert run('convert', official[0], path, *OPTIONS, '--overwrite')[0] == 1
    assert path.read_text() == 'mine'  # a failed conversion replaces nothing
    assert [child.name for child in tmp_path.iterdir() if child.name.startswith('.')] == []


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('nothing.pth', 'x.safetensors'), 'does not exist'),
        (('.', 'x.safetensors'), 'has no model.safetensors'),
        (('setup.cfg', 'x.safetensors'), 'unknown kind'),
        (('setup.cfg', 'x.onnx'), 'is not clear: give --to'),
        (('setup.cfg', 'x.safetensors', '--to', 'augreg'), '.npz'),
        (('setup.cfg',), 'DST'),
        (('setup.cfg', 'x.npz', '--heads', 'many'), 'invalid int'),
    ],
)
def test_a_mistaken_command_ends_in_a_sentence(run, arguments, message):
    status, output = run('convert', *arguments)
    assert status == 1 and message in output and 'Traceback' not in output


def test_a_directory_that_is_no_model_is_never_replaced(run, square, pretrained, hub, tmp_path):
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'thesis.txt').write_text('years of work')
    for arguments in (
        (square[0], mine),
        (square[0], tmp_path / 'mine', '--to', 'huggingface'),
        (pretrained[0], pretrained[0]),
        (square[0], square[0]),
    ):
        before = arguments[1].exists()
        status, output = run('convert', *arguments, *SQUARE_OPTIONS, '--overwrite')
        assert status == 1 and 'choose another name' in output and before, output
    assert (mine / 'thesis.txt').exists() and (pretrained[0] / 'checkpoints').exists()
    assert run('convert', square[0], hub, *SQUARE_OPTIONS, '--overwrite')[0] == 0


def test_a_destination_that_cannot_be_written_ends_in_a_sentence(run, official, tmp_path):
    (tmp_path / 'file').write_text('')
    status, output = run('convert', official[0], tmp_path / 'file' / 'x.safetensors', *OPTIONS)
    assert status == 1 and 'cannot be written' in output


def test_without_pytorch_a_pth_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    (tmp_path / 'x.pth').write_bytes(b'anything')
    status, output = run('convert', tmp_path / 'x.pth', tmp_path / 'x.safetensors')
    assert status == 1 and 'pip install' in output
