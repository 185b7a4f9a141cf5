"""Models of other libraries, and of the Hub, are loaded directly."""

import jax
import numpy as np
import pytest
import vitmae
from helpers.official_files import SQUARE

import mae_jax
from mae_jax.errors import UserError
from mae_jax.interop import read
from mae_jax.interop.convert import convert


def same(params, expected):
    return jax.tree.all(jax.tree.map(np.array_equal, params, expected))


@pytest.fixture
def tree():
    return vitmae.to_tree(SQUARE, vitmae.weights(SQUARE))


def test_a_directory_of_hugging_face_is_loaded_without_converting_it(hub, tree):
    module, params = mae_jax.load(hub)
    assert same(params, tree) and (module.heads, module.decoder_heads) == (3, 2)
    encoder, params = mae_jax.load_encoder(hub, image_size=16)
    assert params['pos_embed'].shape == (1, 17, 12) and encoder.heads == 3
    images = np.full((1, 8, 8, 3), 255, np.uint8)
    expected = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(mae_jax.load_normalize(hub)(images)[0, 0, 0], expected, rtol=1e-5)


def test_a_pytorch_file_is_loaded_without_converting_it(hub, tree, tmp_path):
    torch = pytest.importorskip('torch')
    file = hub / 'pytorch_model.bin'
    tensors = read.read_foreign(hub).tensors
    torch.save({name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}, file)
    (hub / 'model.safetensors').unlink()
    for path in (hub, file):
        assert same(mae_jax.load(path)[1], tree)


def test_a_config_is_kept_in_memory_until_the_files_change(hub, monkeypatch):
    calls = []
    monkeypatch.setattr(
        read,
        'read_foreign',
        lambda path, real=read.read_foreign: (calls.append(path), real(path))[1],
    )
    for _ in range(3):
        mae_jax.load_normalize(hub)
    assert len(calls) == 1
    text = (hub / 'preprocessor_config.json').read_text()
    (hub / 'preprocessor_config.json').write_text(text.replace('0.485', '0.25'))
    assert read.read_config(hub).dataset.mean[0] == 0.25


def test_what_another_library_does_not_state_is_asked_for(hub, tmp_path):
    (hub / 'model.safetensors').rename(tmp_path / 'alone.safetensors')
    with pytest.raises(UserError, match=r'alone\.safetensors: .*does not state heads.*--heads'):
        mae_jax.load_encoder(tmp_path / 'alone.safetensors')


@pytest.fixture
def on_hub(monkeypatch):
    """Makes a local path what `hf://...` downloads: on_hub(path) -> the URIs that are asked for."""

    def put(path):
        uris = []
        monkeypatch.setattr(read, 'download', lambda uri: (uris.append(uri), str(path))[1])
        return uris

    return put


def test_a_model_of_the_hub_is_read_as_what_was_downloaded(hub, on_hub, tree):
    uris = on_hub(hub)
    assert same(mae_jax.load('hf://owner/vit-mae')[1], tree)
    assert same(mae_jax.load_encoder('hf://owner/vit-mae@v1')[1], tree['encoder'])
    mae_jax.load_normalize('hf://owner/vit-mae')
    assert uris == ['hf://owner/vit-mae', 'hf://owner/vit-mae@v1', 'hf://owner/vit-mae']


def test_a_directory_with_a_file_of_ours_is_read_as_ours(pretrained, tmp_path, on_hub):
    convert(pretrained[0], tmp_path / 'model.safetensors', say=lambda line: None)
    (tmp_path / 'config.json').write_text('{}')
    on_hub(tmp_path)
    for path in (tmp_path, 'hf://owner/name'):
        assert same(mae_jax.load(path)[1], dict(pretrained[1].params))
