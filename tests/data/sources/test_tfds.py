"""Data sets of TFDS, read without TensorFlow and without running their code."""

import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.tfds_photos import TinyPhotos, picture

from mae_jax.data.loader.batches import make_loader
from mae_jax.data.sources.make import make_source
from mae_jax.errors import UserError


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Returns the data directory of a data set that was written as ArrayRecord."""
    root = tmp_path_factory.mktemp('tfds')
    TinyPhotos(data_dir=root, file_format='array_record').download_and_prepare()
    return root


def test_a_prepared_data_set_is_read_without_tensorflow(prepared):
    source = make_source('tiny_photos', 'train', path=str(prepared))
    assert len(source) == 8
    records = [source[i] for i in range(8)]
    assert {r['image'] for r in records} == {picture(i) for i in range(8)}  # still encoded
    assert sorted(r['label'] for r in records) == [0] * 4 + [1] * 4
    assert (source.num_classes, source.class_names) == (2, ['cat', 'dog'])
    assert len(make_source('tiny_photos', 'validation', path=str(prepared))) == 3  # its test split
    assert len(make_source('tiny_photos', 'train[:50%]', path=str(prepared))) == 4
    assert 'tensorflow' not in sys.modules


def test_a_version_may_follow_the_name(prepared):
    source = make_source('tiny_photos:1.0.0', 'train', path=str(prepared))
    assert source.identity == make_source('tiny_photos', 'train', path=str(prepared)).identity


@pytest.mark.slow
def test_worker_processes_read_the_same(prepared):
    source = make_source('tiny_photos', 'train', path=str(prepared))
    options = {'batch_size': 4, 'rows': range(4), 'seed': 0, 'image_size': (8, 8)}
    with make_loader(source, **options, workers=1, threads=2).iterate(0, 2) as batches:
        workers = list(batches)
    loader = make_loader(source, **options)
    for step, batch in enumerate(workers):
        np.testing.assert_array_equal(batch['image'], loader.batch_at(step)['image'])


def test_a_data_set_without_random_access_names_the_remedy(prepared, tmp_path):
    folder = tmp_path / 'tiny_photos' / '1.0.0'
    folder.mkdir(parents=True)
    for file in (prepared / 'tiny_photos' / '1.0.0').iterdir():
        name = file.name.replace('array_record', 'tfrecord')
        (folder / name).write_bytes(file.read_bytes())
    info = json.loads((folder / 'dataset_info.json').read_text())
    info['fileFormat'] = 'tfrecord'
    for split in info['splits']:
        split['filepathTemplate'] = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    with pytest.raises(UserError, match='tfrecord.*file_format=array_record'):
        make_source('tiny_photos', 'train', path=str(tmp_path))


def test_the_error_of_a_missing_data_set_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r'tfds build mnist --file_format=array_record'):
        make_source('mnist', 'train', path=str(tmp_path))
    with pytest.raises(UserError, match="'imagenett'.*knows no such data set"):
        make_source('imagenett', 'train', path=str(tmp_path))


def test_the_error_of_an_unknown_split_lists_the_existing_ones(prepared):
    with pytest.raises(UserError, match=r"no split 'tran'; it has train, test|test, train"):
        make_source('tiny_photos', 'tran', path=str(prepared))


@pytest.fixture
def copied(prepared, tmp_path):
    """Returns a copy whose files may be changed: (its data directory, the folder of its files)."""
    shutil.copytree(prepared, tmp_path / 'copy')
    return tmp_path / 'copy', tmp_path / 'copy/tiny_photos/1.0.0'


@pytest.mark.parametrize('field', ['pythonClassName', 'type'])
def test_a_module_that_the_features_name_is_not_imported(field, copied, tmp_path, monkeypatch):
    root, folder = copied
    (tmp_path / 'trap_of_features.py').write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((folder / 'features.json').read_text())
    features['featuresDict']['features']['image']['pythonClassName'] = 'trap_of_features.Image'
    if field == 'type':  # how TFDS wrote it earlier
        features = {'type': 'trap_of_features.Image', 'content': {}}
    (folder / 'features.json').write_text(json.dumps(features))
    with pytest.raises(UserError, match="would import 'trap_of_features'"):
        make_source('tiny_photos', 'train', path=str(root))
    assert 'trap_of_features' not in sys.modules and not (tmp_path / 'ran').exists()
    assert tfds.features.FeatureConnector.cls_from_name.__name__ == 'cls_from_name'


@pytest.mark.parametrize('folder_of_files', ['../../elsewhere', '/elsewhere', 'below'])
def test_files_outside_of_the_folder_of_a_data_set_are_refused(folder_of_files, copied):
    root, folder = copied
    info = json.loads((folder / 'dataset_info.json').read_text())
    for split in info['splits']:
        template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
        split['filepathTemplate'] = f'{folder_of_files}/{template}'
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    with pytest.raises(UserError, match='which is not in'):
        make_source('tiny_photos', 'train', path=str(root))
