"""`mae-jax convert` as a person uses it, good input and bad."""

import json
import os
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import vitmae
from helpers import hostile_files

from mae_jax import __main__ as command_line
from mae_jax.interop.trained import read_trained


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `mae-jax` with arguments: run(*arguments) -> (exit status, what it wrote)."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['mae-jax', *map(str, arguments)])
        try:
            command_line.main()
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


CASE = vitmae.Case((8, 24), 3, 4, 0.75, normalized=True)
"""A rectangle of 2 x 6 patches."""
SQUARE = vitmae.Case((8, 8), 3, 4, 0.75, normalized=True)
FACTS = ('--heads', 3, '--decoder_heads', 2, '--image_size', 8, 24, '--no_run')


def official_names(tensors):
    """The golden tensors under the official names, by way of the golden tree alone."""
    official = {}
    for name, tensor in tensors.items():
        for theirs, ours in (
            ('vit.embeddings.cls_token', 'cls_token'),
            ('vit.embeddings.position_embeddings', 'pos_embed'),
            ('vit.embeddings.patch_embeddings.projection', 'patch_embed.proj'),
            ('vit.layernorm', 'norm'),
            ('vit.layers', 'blocks'),
            ('decoder.mask_token', 'mask_token'),
            ('decoder.decoder_layers', 'decoder_blocks'),
            ('decoder.decoder_', 'decoder_'),
            ('attention.o_proj', 'attn.proj'),
            ('layernorm_before', 'norm1'),
            ('layernorm_after', 'norm2'),
        ):
            name = name.replace(theirs, ours)
        official[name] = tensor
    for name in [name for name in official if 'attention.q_proj' in name]:
        parts = [official.pop(name.replace('q_proj', f'{p}_proj')) for p in 'qkv']
        official[name.replace('attention.q_proj', 'attn.qkv')] = np.concatenate(parts)
    return official


def save_official(path, case):
    tensors = official_names(vitmae.weights(case))
    safetensors.numpy.save_file(tensors, path, {'format': 'pt'})
    return path, tensors


@pytest.fixture
def official(tmp_path):
    """A safetensors file of official names that needs no PyTorch, and its tensors."""
    return save_official(tmp_path / 'official.safetensors', CASE)


@pytest.fixture
def square(tmp_path):
    """The same of square images, which Hugging Face wants."""
    return save_official(tmp_path / 'square.safetensors', SQUARE)


SQUARE_FACTS = ('--heads', 3, '--decoder_heads', 2, '--no_run')


def test_official_to_ours_is_the_golden_tree(run, official, tmp_path):
    status, output = run('convert', official[0], tmp_path / 'ours.safetensors', *FACTS)
    assert status == 0, output
    assert 'assumed' in output and 'mask_ratio=0.75' in output and 'heads=' not in output
    trained = read_trained(tmp_path / 'ours.safetensors')
    wanted = vitmae.to_tree(CASE, vitmae.weights(CASE))
    assert jax.tree.structure(trained.params) == jax.tree.structure(wanted)
    assert jax.tree.all(jax.tree.map(np.array_equal, trained.params, wanted))
    assert trained.config.image_size == (8, 24)


@pytest.mark.parametrize('middle', [('ours.safetensors',), ('hub',), ('ours.safetensors', 'hub')])
def test_round_trips_through_files_lose_nothing(run, square, tmp_path, middle):
    path, tensors = square
    for place in (*middle, 'back.safetensors'):
        to = ('--to', 'official') if place == 'back.safetensors' else ()
        status, output = run('convert', path, tmp_path / place, *to, *SQUARE_FACTS)
        assert status == 0, output
        path = tmp_path / place
    back = safetensors.numpy.load_file(path)
    assert back.keys() == tensors.keys()
    assert all(back[name].tobytes() == tensors[name].tobytes() for name in tensors)


def test_a_run_exported_keeps_step_and_config_but_no_paths(run, pretrained, tmp_path):
    workdir, state = pretrained
    status, output = run('convert', workdir, tmp_path / 'model.safetensors')
    assert status == 0 and 'step 4' in output, output
    with safetensors.safe_open(tmp_path / 'model.safetensors', 'numpy') as file:
        header = json.loads(file.metadata()['mae_jax'])
    config = json.loads(header['config'])
    ran = json.loads((workdir / 'config.json').read_text())
    assert header['step'] == 4 and config['mask'] == ran['mask']
    assert config['dataset']['mean'] == ran['dataset']['mean']
    assert str(workdir) not in header['config']
    trained = read_trained(tmp_path / 'model.safetensors')
    assert jax.tree.all(jax.tree.map(np.array_equal, trained.params, dict(state.params)))
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / 'model.safetensors').stat().st_mode & 0o777 == 0o666 & ~umask


def test_hugging_face_directory_says_what_the_model_is(run, pretrained, tmp_path):
    assert run('convert', pretrained[0], tmp_path / 'hub', '--no_run')[0] == 0
    config = json.loads((tmp_path / 'hub' / 'config.json').read_text())
    preprocessor = json.loads((tmp_path / 'hub' / 'preprocessor_config.json').read_text())
    assert config['architectures'] == ['ViTMAEForPreTraining']
    assert config['norm_pix_loss'] is False and config['layer_norm_eps'] == 1e-6
    assert (config['num_hidden_layers'], config['hidden_size'], config['image_size']) == (2, 16, 8)
    assert preprocessor['image_mean'] == [0.305] and preprocessor['rescale_factor'] == 1 / 255


def test_encoder_alone_leaves_the_rest_out(run, pretrained, tmp_path):
    path = tmp_path / 'encoder.npz'
    status, output = run('convert', pretrained[0], path)
    assert status == 1 and 'no place for decoder' in output and '--encoder_only' in output
    assert run('convert', pretrained[0], path, '--encoder_only', '--no_run')[0] == 0
    assert 'Transformer/encoder_norm/scale' in np.load(path).files


def test_encoder_without_norm_is_told_where_it_cannot_go(run, fine_tuned, tmp_path):
    status, output = run('convert', fine_tuned[0], tmp_path / 'x.npz', '--encoder_only')
    assert status == 1 and 'mean pooling' in output
    assert run('convert', fine_tuned[0], tmp_path / 'x.safetensors', '--encoder_only')[0] == 0
    assert set(read_trained(tmp_path / 'x.safetensors').params) == {'encoder'}


def test_a_file_tells_no_paths_of_the_machine_it_was_made_on(run, fine_tuned, tmp_path):
    assert fine_tuned[2].init_from  # the config that was run holds one
    assert run('convert', fine_tuned[0], tmp_path / 'x.safetensors')[0] == 0
    header = (tmp_path / 'x.safetensors').read_bytes()[:20_000]
    assert b'dataset' in header and str(fine_tuned[0].parent).encode() not in header


def test_classifier_keeps_its_averaged_weights(run, fine_tuned, tmp_path):
    path = tmp_path / 'x.safetensors'
    assert run('convert', fine_tuned[0], path, '--to', 'timm', '--no_run')[0] == 0
    tensors = safetensors.numpy.load_file(path)
    wanted = np.asarray(fine_tuned[1].ema['head']['kernel']).T
    assert np.array_equal(tensors['head.weight'], wanted)
    assert 'fc_norm.weight' in tensors and 'norm.weight' not in tensors


@pytest.mark.parametrize(
    ('change', 'told'),
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
def test_a_tensor_too_few_or_too_many_is_named(run, official, tmp_path, change, told):
    path, tensors = official
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    status, output = run('convert', path, tmp_path / 'ours.safetensors', *FACTS)
    assert status == 1 and told in output and 'Traceback' not in output
    assert not (tmp_path / 'ours.safetensors').exists()


def test_what_no_shape_tells_is_asked_for(run, official, tmp_path):
    given = ()
    for missing, value in (('--image_size', (8, 24)), ('--heads', (3,)), ('--decoder_heads', (2,))):
        status, output = run('convert', official[0], tmp_path / 'ours.safetensors', *given)
        assert status == 1 and f'give {missing}' in output
        given += (missing, *value)
    assert run('convert', official[0], tmp_path / 'ours.safetensors', *given, '--no_run')[0] == 0


@pytest.mark.parametrize(
    ('field', 'value'),
    [('num_attention_heads', 'twelve'), ('image_size', [[8], 24]), ('mask_ratio', 2.0)],
)
def test_a_config_that_states_nonsense_is_refused(run, square, tmp_path, field, value):
    assert run('convert', square[0], tmp_path / 'hub', *SQUARE_FACTS)[0] == 0
    file = tmp_path / 'hub' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    status, output = run('convert', tmp_path / 'hub', tmp_path / 'x.safetensors')
    assert status == 1 and str(value) in output and 'Traceback' not in output


def test_other_activations_are_refused(run, square, tmp_path):
    assert run('convert', square[0], tmp_path / 'hub', *SQUARE_FACTS)[0] == 0
    file = tmp_path / 'hub' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {'hidden_act': 'relu'}))
    status, output = run('convert', tmp_path / 'hub', tmp_path / 'x.safetensors')
    assert status == 1 and "hidden_act='relu'" in output


@pytest.mark.parametrize(
    ('field', 'value', 'told'),
    [
        ('layer_norm_eps', 1e-5, 'layer_norm_eps=1e-05'),
        ('layer_norm_eps', 1e-12, None),  # what transformers writes unless told otherwise
        ('architectures', None, None),
    ],
)
def test_a_norm_of_another_epsilon_is_refused(run, square, tmp_path, field, value, told):
    assert run('convert', square[0], tmp_path / 'hub', *SQUARE_FACTS)[0] == 0
    file = tmp_path / 'hub' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    status, output = run('convert', tmp_path / 'hub', tmp_path / 'x.safetensors')
    assert (status, told or '') == (1, told) or status == 0 and told is None, output
    assert 'Traceback' not in output and (told or '') in output


@pytest.mark.parametrize(
    ('preprocessor', 'wanted'),
    [
        ({'rescale_factor': 1 / 65535}, (65535.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({'do_rescale': False}, (1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({'do_normalize': False}, (255.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ({'image_mean': [0.5] * 3}, (255.0, (0.5, 0.5, 0.5), (0.229, 0.224, 0.225))),
    ],
)
def test_how_images_are_normalised_is_read_and_written(run, square, tmp_path, preprocessor, wanted):
    assert run('convert', square[0], tmp_path / 'hub', *SQUARE_FACTS)[0] == 0
    file = tmp_path / 'hub' / 'preprocessor_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | preprocessor))
    path = tmp_path / 'hub'
    for place in ('x.safetensors', 'hub2', 'y.safetensors'):
        status, output = run('convert', path, tmp_path / place, *SQUARE_FACTS)
        assert status == 0 and 'mean' not in output, output
        path = tmp_path / place
    data = read_trained(path).config.dataset
    assert (data.scale, data.mean, data.std) == wanted


def test_a_sharded_directory_is_read_whole_and_nothing_beside_it(run, square, tmp_path):
    assert run('convert', square[0], tmp_path / 'hub', *SQUARE_FACTS)[0] == 0
    tensors = safetensors.numpy.load_file(tmp_path / 'hub' / 'model.safetensors')
    shards = {name: f'model-{n % 2}.safetensors' for n, name in enumerate(tensors)}
    for shard in set(shards.values()):
        part = {name: tensors[name] for name in tensors if shards[name] == shard}
        safetensors.numpy.save_file(part, tmp_path / 'hub' / shard)
    (tmp_path / 'hub' / 'model.safetensors').unlink()
    index = tmp_path / 'hub' / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': shards}))
    status, output = run('convert', tmp_path / 'hub', tmp_path / 'x.safetensors', '--no_run')
    assert status == 0 and 'assumed' not in output, output
    wanted = vitmae.to_tree(SQUARE, vitmae.weights(SQUARE))
    found = read_trained(tmp_path / 'x.safetensors').params
    assert jax.tree.all(jax.tree.map(np.array_equal, found, wanted))
    index.write_text(json.dumps({'weight_map': dict.fromkeys(shards, '../official.safetensors')}))
    status, output = run('convert', tmp_path / 'hub', tmp_path / 'y.safetensors', '--no_run')
    assert status == 1 and 'official.safetensors' in output


def test_hugging_faces_autoencoder_takes_no_rectangles(run, official, tmp_path):
    status, output = run('convert', official[0], tmp_path / 'hub', *FACTS)
    assert status == 1 and 'squares' in output and not (tmp_path / 'hub').exists()
    assert run('convert', official[0], tmp_path / 'hub', *FACTS, '--encoder_only')[0] == 0


def test_what_is_known_better_is_said_of_a_file_of_ours_too(run, square, tmp_path):
    first, second = tmp_path / 'x.safetensors', tmp_path / 'y.safetensors'
    assert run('convert', square[0], first, *SQUARE_FACTS)[0] == 0
    better = ('--target', 'pixel', '--mask_ratio', 0.5, '--mean', 0.5, 0.5, 0.5, '--heads', 2)
    status, output = run('convert', first, second, *better)
    assert status == 0, output
    config = read_trained(second).config
    assert config.target.name == 'pixel' and config.mask.ratio == 0.5
    assert config.dataset.mean == (0.5, 0.5, 0.5) and config.model.heads == 2


@pytest.mark.parametrize(
    'facts',
    [('--mean', 0.5), ('--std', 0, 0, 0), ('--heads', 0), ('--heads', 5), ('--mask_ratio', 1.0)],
)
def test_facts_that_cannot_be_are_refused(run, square, tmp_path, facts):
    status, output = run('convert', square[0], tmp_path / 'x.safetensors', *SQUARE_FACTS, *facts)
    assert status == 1 and facts[0][2:].replace('_', '.').split('.')[0] in output, output
    assert 'Traceback' not in output


def test_tensors_of_a_distilled_model_are_named(run, square, tmp_path):
    path, tensors = square
    tensors['dist_token'] = tensors['cls_token']
    tensors['pos_embed'] = np.concatenate([tensors['pos_embed'][:, :1], tensors['pos_embed']], 1)
    safetensors.numpy.save_file(tensors, path)
    status, output = run('convert', path, tmp_path / 'x.safetensors', *SQUARE_FACTS)
    assert status == 1 and 'dist_token is unknown' in output


@pytest.mark.parametrize('make', hostile_files.PTH + hostile_files.OTHERS)
def test_a_damaged_or_hostile_file_ends_in_a_sentence(run, tmp_path, make):
    path = make(tmp_path)
    status, output = run('convert', path, tmp_path / 'ours.safetensors')
    assert status == 1 and output.startswith(f'error: {path}') and 'Traceback' not in output
    assert len(output.strip().splitlines()) <= 2, output
    assert not (tmp_path / 'ran').exists() and not (tmp_path / 'ours.safetensors').exists()


def test_an_existing_destination_is_kept_unless_told(run, official, tmp_path):
    path = tmp_path / 'ours.safetensors'
    path.write_text('mine')
    status, output = run('convert', official[0], path, *FACTS)
    assert status == 1 and '--overwrite' in output and path.read_text() == 'mine'
    official[0].write_text('not a model')
    assert run('convert', official[0], path, *FACTS, '--overwrite')[0] == 1
    assert path.read_text() == 'mine'  # what cannot be made replaces nothing
    assert [child.name for child in tmp_path.iterdir() if child.name.startswith('.')] == []


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (('nothing.pth', 'x.safetensors'), 'does not exist'),
        (('.', 'x.safetensors'), 'without model.safetensors'),
        (('setup.cfg', 'x.safetensors'), 'unknown kind'),
        (('setup.cfg', 'x.onnx'), 'is not clear: give --to'),
        (('setup.cfg', 'x.safetensors', '--to', 'augreg'), '.npz'),
        (('setup.cfg',), 'DST'),
        (('setup.cfg', 'x.npz', '--head', 'many'), 'invalid int'),
    ],
)
def test_a_mistaken_command_ends_in_a_sentence(run, arguments, told):
    status, output = run('convert', *arguments)
    assert status == 1 and told in output and 'Traceback' not in output


def test_a_directory_that_is_no_model_is_never_replaced(run, square, pretrained, tmp_path):
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
        status, output = run('convert', *arguments, *SQUARE_FACTS, '--overwrite')
        assert status == 1 and 'choose another name' in output and before, output
    assert (mine / 'thesis.txt').exists() and (pretrained[0] / 'checkpoints').exists()
    assert run('convert', square[0], tmp_path / 'hub', *SQUARE_FACTS)[0] == 0
    assert run('convert', square[0], tmp_path / 'hub', *SQUARE_FACTS, '--overwrite')[0] == 0


def test_a_destination_that_cannot_be_written_ends_in_a_sentence(run, official, tmp_path):
    (tmp_path / 'file').write_text('')
    status, output = run('convert', official[0], tmp_path / 'file' / 'x.safetensors', *FACTS)
    assert status == 1 and 'cannot be written' in output


def test_commands_are_listed(run):
    status, output = run('--help')
    assert status == 0 and 'convert' in output and 'visualize' in output


def test_without_pytorch_a_pth_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    (tmp_path / 'x.pth').write_bytes(b'anything')
    status, output = run('convert', tmp_path / 'x.pth', tmp_path / 'x.safetensors')
    assert status == 1 and 'pip install' in output
