"""Models on the Hugging Face Hub, of which the tests have a stand-in: pushed, and read back."""

import logging
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from helpers.hub_server import TOKEN, hub_server
from PIL import Image
from safetensors.numpy import load

import mae_jax
from mae_jax.errors import UserError
from mae_jax.interop.hub import download, parse
from mae_jax.interop.push import push

constants = pytest.importorskip('huggingface_hub.constants')


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub, empty, with a token that may write and an empty cache."""
    for variable in ('HF_HUB_OFFLINE', 'HUGGING_FACE_HUB_TOKEN'):
        monkeypatch.delenv(variable, raising=False)
    with hub_server() as (address, hub):
        monkeypatch.setattr(constants, 'ENDPOINT', address)
        template = f'{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no_token'))
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        yield hub


@pytest.fixture
def run(pretrained):
    """A finished run with a picture."""
    picture = pretrained[0] / 'images/latest.png'
    picture.parent.mkdir(exist_ok=True)
    Image.new('RGB', (4, 3), 'red').save(picture)
    return pretrained[0]


def pushed(run, server, **options):
    """Pushes a run: -> the lines that were printed, and the files on the Hub."""
    lines = []
    push(run, 'me/model', say=lines.append, **options)
    return lines, server.files['me/model']


def test_a_pushed_run_is_read_back_by_its_address(run, server):
    lines, files = pushed(run, server)
    assert set(files) == {'model.safetensors', 'README.md', 'images/latest.png'}
    assert "mae_jax.load_encoder('hf://me/model')" in lines[1]
    assert server.messages == ['run, step 4, by mae_jax']
    for read in (mae_jax.load, mae_jax.load_encoder):
        expected, actual = read(run), read('hf://me/model')
        assert str(actual[0]) == str(expected[0])
        jax.tree.map(np.testing.assert_array_equal, actual[1], expected[1])
    images = np.zeros((1, 8, 8, 1), np.uint8)
    normalized = mae_jax.load_normalize('hf://me/model')(images)
    np.testing.assert_array_equal(normalized, mae_jax.load_normalize(run)(images))


def test_nothing_that_is_pushed_names_a_path_of_this_machine(fine_tuned, server):
    workdir, _, config = fine_tuned
    push(workdir, 'me/model', say=lambda line: None)
    files = server.files['me/model']
    for content in files.values():
        for path in (workdir, config.init_from, os.sep + 'tmp' + os.sep):
            assert str(path).encode() not in content
    readme = files['README.md'].decode()
    header = yaml.safe_load(readme.split('---\n')[1])
    assert header['library_name'] == 'mae_jax' and header['model-index']
    assert "path = 'hf://me/model'\n" in readme
    assert 'mae-jax convert hf://me/model model.safetensors' in readme
    assert 'encoder/cls_token' in load(files['model.safetensors'])


def test_the_picture_of_the_card_is_shown_by_the_card(tmp_path, server, tiny_config):
    tiny_config.update({'num_steps': 1, 'image_every_steps': 1})
    mae_jax.run(tiny_config, tmp_path / 'run')
    _, files = pushed(tmp_path / 'run', server)
    assert b'](images/latest.png)' in files['README.md']
    assert files['images/latest.png'] == (tmp_path / 'run/images/latest.png').read_bytes()


def test_a_model_in_the_cache_is_read_without_the_network(run, server, monkeypatch):
    pushed(run, server)
    expected = download('hf://me/model')
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    assert download('hf://me/model') == expected


def test_a_repository_of_hugging_face_is_read_from_its_directory(server):
    server.files['them/vit'] = {
        'config.json': b'{}',
        'pytorch_model.bin': b'weights',
        'tf_model.h5': b'large',
    }
    folder = download('hf://them/vit@v1')
    assert sorted(os.listdir(folder)) == ['config.json', 'pytorch_model.bin']


def test_one_file_is_read_where_it_is_named(server):
    server.files['them/mae'] = {'weights/a.pth': b'a', 'weights/b.pth': b'b'}
    path = download('hf://them/mae/weights/a.pth')
    assert path.endswith('weights/a.pth') and Path(path).read_bytes() == b'a'
    with pytest.raises(UserError, match='hf://them/mae/<file>'):
        download('hf://them/mae')


def test_private_repositories_are_made_and_read_with_the_token(run, server, monkeypatch):
    pushed(run, server, private=True)
    assert server.private == {'me/model'}
    mae_jax.load_encoder('hf://me/model')
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', f'{run}/other_cache')
    with pytest.raises(UserError, match='does not exist, or is private: check the name, or log in'):
        download('hf://me/model')


def test_a_public_repository_gets_nothing_private(run, server):
    server.files['me/model'] = {}
    with pytest.raises(UserError, match='exists and is public'):
        push(run, 'me/model', private=True)
    assert server.files['me/model'] == {}


@pytest.mark.parametrize('status', [401, 403, 409, 422])
def test_what_the_hub_refuses_is_one_sentence_without_the_token(
    status, run, server, capsys, caplog
):
    server.status = status
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as raised:
        push(run, 'me/model')
    assert ('may not write' if status in (401, 403) else str(status)) in str(raised.value)
    printed = capsys.readouterr()
    for text in (str(raised.value), printed.out, printed.err, caplog.text):
        assert TOKEN not in text
    assert '\n' not in str(raised.value)


def test_missing_token_and_missing_network_are_explained(run, server, monkeypatch):
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(UserError, match='the Hub cannot be reached'):
        push(run, 'me/model')
    with pytest.raises(UserError, match='not in the cache, and the Hub cannot be reached'):
        download('hf://me/other')
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(UserError, match='without a token: log in with `hf auth login`'):
        push(run, 'me/model')


@pytest.mark.parametrize('name', ['model', 'me/model/x', 'me model', '../model', 'hf://me/model'])
def test_the_name_of_a_repository_has_an_owner(name, run):
    with pytest.raises(UserError, match='give owner/name'):
        push(run, name)


@pytest.mark.parametrize('uri', ['hf://model', 'hf://me/model/../x', 'hf://me/mo del', 'hf://'])
def test_an_address_has_an_owner_and_a_name(uri):
    with pytest.raises(UserError, match='hf://owner/name'):
        parse(uri)


def test_a_run_that_is_not_finished_has_no_card(run, server):
    (run / 'model_card.md').rename(run / 'card.md')
    with pytest.raises(UserError, match='no model_card.md'):
        push(run, 'me/model')
    (run / 'card.md').rename(run / 'model_card.md')
    assert not server.files
