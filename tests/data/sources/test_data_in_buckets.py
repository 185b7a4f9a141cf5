"""Prepared data and data sets of TFDS that lie in a bucket of a real server."""

import numpy as np
import pytest
from helpers.bucket_server import bucket_server, clients_of, upload
from helpers.tfds_photos import TinyPhotos
from helpers.tiny_runs import make_image_folder

from mae_jax.data.loader.batches import make_loader
from mae_jax.data.prepare.prepare import prepare
from mae_jax.data.sources.make import make_source
from mae_jax.errors import UserError

OPTIONS = {'batch_size': 5, 'rows': range(5), 'seed': 3, 'image_size': (8, 8)}


@pytest.fixture(scope='module', autouse=True)
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp('buckets') / 'root'
    with bucket_server(root) as url, clients_of(url):
        yield


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """(local directory, the same in a bucket) of what `mae-jax prepare` writes."""
    root = tmp_path_factory.mktemp('prepared')
    make_image_folder(root / 'images', 'ab', 20)
    local = root / 'out'
    prepare(str(root / 'images'), str(local), workers=1, shard_examples=10, log=lambda text: None)
    return str(local), upload(local, 'gs://bucket/prepared')


def same(source, expected):
    assert len(source) == len(expected)
    assert [source[i] for i in range(len(source))] == [expected[i] for i in range(len(source))]


def test_prepared_shards_are_read_where_they_lie(prepared):
    local, remote = (make_source('prepared', 'train', path=path) for path in prepared)
    same(remote, local)
    assert remote.identity == local.identity  # a run may go on with the copy


@pytest.mark.slow
def test_worker_processes_read_prepared_shards_too(prepared):
    local, remote = (make_source('prepared', 'train', path=path) for path in prepared)
    remote[0]  # opens a shard in this process first
    expected = make_loader(local, **OPTIONS)
    with make_loader(remote, **OPTIONS, workers=2).iterate(0, 4) as batches:
        for step, batch in enumerate(batches):
            np.testing.assert_array_equal(batch['image'], expected.batch_at(step)['image'])


def test_a_shard_that_was_not_copied_is_named(prepared):
    import fsspec

    fsspec.filesystem('gs').cp(f'{prepared[1]}/', 'gs://bucket/partial/', recursive=True)
    fsspec.filesystem('gs').rm('gs://bucket/partial/train-00001-of-00004.array_record')
    with pytest.raises(UserError, match='is incomplete: train-00001-of-00004.array_record'):
        make_source('prepared', 'train', path='gs://bucket/partial')


def test_a_directory_without_prepared_data_is_refused():
    with pytest.raises(UserError, match='mae-jax prepare SRC DIR`, and copy it there'):
        make_source('prepared', 'train', path='gs://bucket/nothing')


def test_a_folder_of_images_in_a_bucket_names_the_remedy():
    with pytest.raises(UserError, match='not a folder on a disk.*mae-jax prepare'):
        make_source('folder', 'train', path='gs://bucket/images')


def test_a_data_set_of_tfds_is_read_where_it_lies(tmp_path):
    TinyPhotos(data_dir=tmp_path, file_format='array_record').download_and_prepare()
    remote = upload(tmp_path, 'gs://bucket/tfds')
    same(*(make_source('tiny_photos', 'train', path=str(path)) for path in (remote, tmp_path)))
    with pytest.raises(UserError, match='knows no such data set nor finds it in gs://bucket/tfds'):
        make_source('tiny_fotos', 'train', path=remote)
