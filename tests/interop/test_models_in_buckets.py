"""Trained models that lie in a bucket of a real server: whatever reads or writes one."""

import jax
import numpy as np
import pytest
from helpers.bucket_server import clients_of, failing_server, upload
from helpers.tiny_runs import classifying, make_image_folder, start

import mae_jax
from configs import finetune
from mae_jax.errors import UserError
from mae_jax.experiment.saved import saved_config
from mae_jax.files.buckets import as_path
from mae_jax.inference.embed import write_embedding
from mae_jax.inference.visualize import visualize
from mae_jax.interop.convert import convert


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp('buckets') / 'root'
    with failing_server(root) as server, clients_of(server.url):
        yield server


@pytest.fixture(scope='module')
def remote(server, pretrained):
    return upload(pretrained[0], 'gs://bucket/run')


def same(trees):
    (left, right) = map(jax.tree.leaves, trees)
    assert left and len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_is_that_of_the_local_directory(remote, pretrained):
    same(mae_jax.load_encoder(path)[1] for path in (remote, pretrained[0]))
    step = as_path(f'{remote}/checkpoints/4')
    same(mae_jax.load(path)[1] for path in (step, pretrained[0]))
    assert saved_config(remote) == saved_config(pretrained[0])


@pytest.mark.slow
def test_a_run_starts_from_it(remote, pretrained, tmp_path):
    states = [
        start(classifying(finetune.get_config, source), tmp_path / str(number))
        for number, source in enumerate((remote, pretrained[0]))
    ]
    same(state.params['encoder'] for state in states)


@pytest.mark.slow
def test_it_is_converted_there_and_back(remote, pretrained):
    convert(remote, 'gs://bucket/out/model.safetensors')
    same(mae_jax.load(path)[1] for path in ('gs://bucket/out/model.safetensors', pretrained[0]))
    convert(remote, 'gs://bucket/out/theirs', to='huggingface')
    names = {path.name for path in as_path('gs://bucket/out/theirs').iterdir()}
    assert names == {'config.json', 'preprocessor_config.json', 'model.safetensors'}


@pytest.mark.slow
def test_pictures_and_features_are_written_there(remote, tmp_path):
    folder = make_image_folder(tmp_path, 'a', 3)
    visualize(remote, [str(folder / 'a/0.png')], 'gs://bucket/out/grid.png')
    assert as_path('gs://bucket/out/grid.png').read_bytes().startswith(b'\x89PNG')
    write_embedding('gs://bucket/out/x.npz', mae_jax.embed(remote, str(folder)))
    with as_path('gs://bucket/out/x.npz').open('rb') as file:
        assert np.load(file)['features'].shape[0] == 3


def test_a_model_that_is_missing_or_refused_is_explained(remote, server):
    for path in ('gs://bucket/other', 'gs://nowhere/run'):
        with pytest.raises(UserError, match=f'{path} is neither a work directory'):
            mae_jax.load_encoder(path)
    server.answer = lambda method, path: 403
    try:
        with pytest.raises(UserError, match='may not be read or written by this account'):
            mae_jax.load_encoder(remote)
    finally:
        server.answer = lambda method, path: None
