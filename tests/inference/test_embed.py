"""`mae_jax.embed` and `mae-jax embed`: features against `load_encoder` by hand."""

import io

import numpy as np
import pytest
from helpers.tiny_runs import make_image_folder
from PIL import Image

import mae_jax
from mae_jax.cli import embed as command
from mae_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Six grey PNGs in two classes, and one that is none."""
    root = make_image_folder(tmp_path / 'photos', 'ab', count=3)
    (root / 'a' / 'bad.png').write_bytes(b'no picture')
    (root / 'a' / 'notes.txt').write_text('no image')
    return root


NAMES = [f'{c}/{n}.png' for c in 'ab' for n in range(3)]


def by_hand(model, root, names, output='mean', size=8):
    """Features of images of the model's size, each encoded alone."""
    encoder, params = mae_jax.load_encoder(model, image_size=size)
    rows = []
    for name in names:
        picture = Image.open(root / name).resize((size, size), Image.Resampling.BICUBIC)
        images = ((np.asarray(picture, np.float64) / 255 - 0.305) / 0.376)[None, ..., None]
        rows.append(encoder.apply({'params': params}, images.astype(np.float32))[0])
    tokens = np.asarray(rows)
    return {'mean': tokens[:, 1:].mean(axis=1), 'cls': tokens[:, 0], 'tokens': tokens}[output]


@pytest.mark.parametrize(
    ('output', 'batch_size', 'size'), [('mean', 4, 8), ('cls', 64, 8), ('tokens', 1, 12)]
)
def test_features_are_those_of_the_encoder_image_by_image(
    pretrained, folder, output, batch_size, size
):
    model = pretrained[0]
    result = mae_jax.embed(model, folder, output=output, batch_size=batch_size, image_size=size)
    assert result.names == NAMES and result.class_names == ['a', 'b']
    assert result.labels.tolist() == [0, 0, 0, 1, 1, 1] and result.labels.dtype == np.int32
    assert result.features.dtype == np.float32
    np.testing.assert_allclose(
        result.features, by_hand(model, folder, NAMES, output, size), atol=2e-5
    )
    assert list(result.unreadable) == ['a/bad.png']
    assert 'cannot be read as an image' in result.unreadable['a/bad.png']


def test_labels_are_those_of_classes_below_splits(pretrained, folder, tmp_path):
    root = tmp_path / 'split'
    for split in ('train', 'Valid'):
        make_image_folder(root / split, 'ab', count=1)
    result = mae_jax.embed(pretrained[0], root)
    assert result.names == ['Valid/a/0.png', 'Valid/b/0.png', 'train/a/0.png', 'train/b/0.png']
    assert result.labels.tolist() == [0, 1, 0, 1] and result.class_names == ['a', 'b']


def test_images_without_folders_of_classes_have_no_labels(pretrained, folder):
    result = mae_jax.embed(pretrained[0], folder / 'b')
    assert result.names == ['0.png', '1.png', '2.png']
    assert result.labels.tolist() == [-1] * 3 and result.class_names == []


def test_files_and_sources_are_embedded_too(pretrained, folder):
    model, expected = pretrained[0], by_hand(pretrained[0], folder, NAMES)
    files = [folder / name for name in reversed(NAMES)]
    listed = mae_jax.embed(model, files)
    assert listed.names == [str(file) for file in files]
    np.testing.assert_allclose(listed.features, expected[::-1], atol=2e-5)
    pixels = np.stack([np.asarray(Image.open(folder / name)) for name in NAMES])
    arrays = mae_jax.embed(model, mae_jax.ArraySource(pixels, list('xyxyxy')))
    assert arrays.names[1] == 'array/1' and arrays.labels.tolist() == [0, 1] * 3
    np.testing.assert_allclose(arrays.features, expected, atol=2e-5)


@pytest.mark.parametrize(
    ('images', 'options', 'message'),
    [
        ('nowhere', {}, r'1 of 1 files do not exist, such as nowhere'),
        ('empty', {}, 'has no image in it'),
        ('photos/a/bad.png', {}, 'none of 1 images can be read: .*bad.png'),
        ('photos', {'output': 'max'}, "output='max' is unknown: choose tokens"),
        ('photos', {'batch_size': 0}, 'batch_size=0 must be at least 1'),
        ('photos', {'image_size': 9}, 'patches of 2'),
        ('photos', {'probe_block': 2}, 'probe_block=2 does not exist: .* 0 to 1'),
    ],
)
def test_what_cannot_be_embedded_is_explained(
    pretrained, folder, tmp_path, monkeypatch, images, options, message
):
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        mae_jax.embed(pretrained[0], images, **options)


@pytest.mark.parametrize('block', [0, 1, -1])
def test_features_are_taken_after_the_block_that_is_probed(pretrained, folder, block):
    encoder, params = mae_jax.load_encoder(pretrained[0])
    images = mae_jax.load_images(pretrained[0], [folder / name for name in NAMES])
    depth = {0: 1, 1: 2, -1: 2}[block]
    blocks = {name: params['blocks'][name] for name in ('block_0', 'block_1')[:depth]}
    cut = encoder.clone(depth=depth)
    expected = np.asarray(cut.apply({'params': params | {'blocks': blocks}}, images))[:, 0]
    result = mae_jax.embed(pretrained[0], folder, output='cls', probe_block=block)
    np.testing.assert_allclose(result.features, expected, atol=2e-5)


def test_features_after_each_block_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128)
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
    model, states = transformers.ViTModel(config, add_pooling_layer=False).eval(), []
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    model.save_pretrained(tmp_path / 'vit')
    for module in model.modules():
        if type(module).__name__ == 'ViTLayer':
            module.register_forward_hook(lambda *call: states.append(call[2]))
    files = [tmp_path / f'{number}.png' for number in range(2)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    images = mae_jax.load_images(tmp_path / 'vit', files)
    with torch.no_grad():
        model(torch.tensor(images.transpose(0, 3, 1, 2)))
        states = [state[0] if isinstance(state, tuple) else state for state in states]
        expected = [model.layernorm(state).numpy() for state in states]
    assert len(expected) == 3
    for block, tokens in enumerate(expected):
        result = mae_jax.embed(tmp_path / 'vit', files, output='tokens', probe_block=block)
        np.testing.assert_allclose(result.features, tokens, atol=1e-4)
        assert np.abs(tokens - expected[block - 1]).max() > 0.1


def run(*arguments):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_writes_arrays_and_names_what_it_left_out(pretrained, folder, tmp_path, capsys):
    out = tmp_path / 'features.npz'
    run(pretrained[0], folder, out)
    printed = capsys.readouterr()
    assert '6 images, 2 classes, 1 unreadable: 16 features of each' in printed.out
    assert printed.err.startswith('left out: ') and 'bad.png' in printed.err
    with np.load(io.BytesIO(out.read_bytes()), allow_pickle=False) as arrays:
        assert arrays['names'].tolist() == NAMES and arrays['labels'].tolist() == [0] * 3 + [1] * 3
        np.testing.assert_allclose(
            arrays['features'], by_hand(pretrained[0], folder, NAMES), atol=2e-5
        )
        assert arrays['class_names'].tolist() == ['a', 'b']
        assert arrays['unreadable'].tolist() == ['a/bad.png']
    with pytest.raises(UserError, match=r'features\.npz exists and is kept.*--overwrite'):
        run(pretrained[0], folder, out)
    run(pretrained[0], folder / 'b', out, '--overwrite')
    assert len(np.load(out)['names']) == 3
    with pytest.raises(UserError, match=r'must end in \.npz'):
        run(pretrained[0], folder, tmp_path / 'features.csv')
    run(pretrained[0], folder, tmp_path / 'first.npz', '--probe_block', 0)
    expected = mae_jax.embed(pretrained[0], folder, probe_block=0).features
    np.testing.assert_array_equal(np.load(tmp_path / 'first.npz')['features'], expected)
