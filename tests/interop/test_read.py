"""Models of other libraries, and of the Hub, are loaded directly."""

import sys

import jax
import numpy as np
import pytest
import vitmae
from helpers.official_files import SQUARE

import mae_jax
from mae_jax.cli import convert
from mae_jax.cli.main import parse_arguments
from mae_jax.errors import UserError
from mae_jax.interop import read


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


class FakeHub:
    """Answers as huggingface_hub does, from a folder."""

    def __init__(self, folder, missing=None):
        self.folder, self.missing, self.calls = folder, missing, []

    def snapshot_download(self, name, *, revision, allow_patterns):
        self.calls.append((name, revision, tuple(allow_patterns)))
        if self.missing:
            raise self.missing
        return str(self.folder)


@pytest.fixture
def on_hub(monkeypatch):
    def put(folder, missing=None):
        hub = FakeHub(folder, missing)
        monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
        return hub

    return put


def test_a_model_of_the_hub_is_downloaded_in_its_revision(hub, on_hub, tree):
    fake = on_hub(hub)
    assert same(mae_jax.load('hf://owner/vit-mae.1')[1], tree)
    assert same(mae_jax.load_encoder('hf://owner/vit-mae.1@refs/pr/3')[1], tree['encoder'])
    assert [call[:2] for call in fake.calls] == [
        ('owner/vit-mae.1', None),
        ('owner/vit-mae.1', 'refs/pr/3'),
    ]
    assert not any('pytorch_model.bin' in patterns for *_, patterns in fake.calls)


def test_pytorch_weights_are_downloaded_only_where_there_are_no_others(tmp_path, on_hub):
    (tmp_path / 'config.json').write_text('{}')
    fake = on_hub(tmp_path)
    with pytest.raises(UserError, match='neither a work directory'):
        mae_jax.load('hf://owner/name')
    assert ['pytorch_model.bin' in patterns for *_, patterns in fake.calls] == [False, True]


def test_a_file_of_ours_on_the_hub_is_read_as_ours(pretrained, tmp_path, on_hub):
    arguments = ('convert', pretrained[0], tmp_path / 'model.safetensors')
    convert.run(parse_arguments(list(map(str, arguments))))
    (tmp_path / 'config.json').write_text('{}')
    on_hub(tmp_path)
    assert same(mae_jax.load('hf://owner/name')[1], dict(pretrained[1].params))


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('hf://owner', r'give hf://owner/name\[@revision\]'),
        ('hf://owner/name/file', 'give hf://'),
        ('hf://owner/name', 'cannot be downloaded .*no such repository.*hf auth login'),
    ],
)
def test_a_wrong_name_ends_in_a_sentence(on_hub, tmp_path, path, message):
    on_hub(tmp_path, ValueError('no such repository\nRequest ID: 1'))
    with pytest.raises(UserError, match=message) as caught:
        mae_jax.load_encoder(path)
    assert '\n' not in str(caught.value)


def test_without_the_library_its_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match='pip install huggingface_hub'):
        mae_jax.load_encoder('hf://owner/name')
