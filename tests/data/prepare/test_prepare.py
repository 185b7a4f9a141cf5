"""Preparing a data set: what is written, going on after a stop, and what is refused."""

import io
import json
import os
import pickle
import shutil
from multiprocessing.context import SpawnProcess
from unittest import mock

import numpy as np
import pytest
from helpers.disks import files_no_larger_than
from helpers.images import smooth_picture
from PIL import Image

from mae_jax.data.prepare import shards
from mae_jax.data.prepare.prepare import prepare
from mae_jax.data.prepare.shards import ShardRange, write_shards
from mae_jax.data.sources.make import make_source
from mae_jax.data.sources.prepared import PreparedSource
from mae_jax.data.sources.prepared_format import read_contents
from mae_jax.errors import UserError

SMALL = {'short_side': 32, 'shard_examples': 4, 'workers': 1}


def quiet(source, out, compared=2, **options):
    """Prepares without output; comparing more than two images takes most of the time."""
    with mock.patch.object(shards, 'COMPARED_IMAGES', compared):
        return prepare(str(source), str(out), **(SMALL | {'log': lambda text: None} | options))


def files(out):
    return {f.name: f.read_bytes() for f in out.iterdir() if not f.name.startswith('.')}


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """Returns a folder of 18 training and 2 validation images, and the files prepared from it."""
    root = tmp_path_factory.mktemp('shared')
    for split, count in (('train', 9), ('val', 1)):
        for label, name in enumerate('ab'):
            folder = root / 'photos' / split / name
            folder.mkdir(parents=True)
            for i in range(count):  # some are larger than 32 pixels
                picture = smooth_picture(100 * label + i, 30 + 9 * i, 24 + 6 * i)
                picture.save(folder / f'{i}.jpg')
    quiet(root / 'photos', root / 'out')
    return root / 'photos', files(root / 'out')


@pytest.fixture
def photos(shared, tmp_path):
    """Returns a copy of the images, which may be changed."""
    return shutil.copytree(shared[0], tmp_path / 'photos')


@pytest.fixture
def complete(shared):
    """Returns the name and content of each file that is prepared from `photos`."""
    return shared[1]


def test_images_are_reduced_and_keep_label_and_order(photos, tmp_path):
    quiet(photos, tmp_path / 'out')
    theirs = make_source('folder', 'train', path=str(photos))
    ours = PreparedSource(tmp_path / 'out', 'train')
    assert len(ours) == len(theirs) == 18
    sides = []
    for i in range(18):
        record = theirs[i]
        assert ours[i]['label'] == record['label']
        before, after = (Image.open(io.BytesIO(r['image'])) for r in (record, ours[i]))
        sides.append(min(before.size))
        if min(before.size) <= 32:
            assert ours[i]['image'] == record['image']
        else:
            assert min(after.size) == 32
            by_hand = np.asarray(before.resize(after.size, Image.Resampling.BICUBIC), float)
            assert abs(np.asarray(after) - by_hand).mean() < 4  # the loss of JPEG
    assert min(sides) <= 32 < max(sides)
    assert sorted(files(tmp_path / 'out')) == [
        'dataset.json',
        *(f'train-0000{i}-of-00005.array_record' for i in range(5)),
        'validation-00000-of-00001.array_record',
    ]


def test_the_error_of_a_process_that_cannot_start_is_raised():
    tasks = [ShardRange('train', number, 2, number, number + 1) for number in range(2)]
    with pytest.raises((AttributeError, pickle.PicklingError), match='pickle|local object'):
        list(write_shards(tasks, lambda *_: None, 2, print))


def test_a_process_that_ends_while_it_starts_is_reported():
    start = SpawnProcess.start

    def start_and_kill(process):
        start(process)
        process.kill()
        process.join()

    tasks = [ShardRange('train', number, 2, number, number + 1) for number in range(2)]
    reported = pytest.raises(UserError, match='ended with exit status -9')
    with mock.patch.object(SpawnProcess, 'start', start_and_kill), reported:
        list(write_shards(tasks, print, 2, print))


def test_the_path_of_the_folder_changes_no_shard(photos, complete, tmp_path):
    quiet(photos, tmp_path / 'out')
    assert files(tmp_path / 'out') == complete


def test_a_preparation_that_stopped_continues_to_the_same_bytes(photos, complete, tmp_path):
    good = (photos / 'train/b/3.jpg').read_bytes()
    (photos / 'train/b/3.jpg').write_bytes(good[:200])
    with pytest.raises(UserError, match=r'b/3\.jpg cannot be read.*--on_error=skip'):
        quiet(photos, tmp_path / 'out')
    before = {f.name: f.stat() for f in (tmp_path / 'out').glob('*.array_record')}
    assert sorted(before) == [f'train-0000{i}-of-00005.array_record' for i in range(3)]
    with pytest.raises(UserError, match='incomplete: 2 of 5 shards'):
        PreparedSource(tmp_path / 'out', 'train')
    (photos / 'train/b/3.jpg').write_bytes(good)
    (tmp_path / 'out' / '.unfinished-of-another').write_bytes(b'x')
    os.truncate(tmp_path / 'out/train-00001-of-00005.array_record', 10)
    quiet(photos, tmp_path / 'out')
    assert files(tmp_path / 'out') == complete
    assert [f.name for f in (tmp_path / 'out').glob('.*')] == ['.lock']
    for name in ('train-00000-of-00005.array_record', 'train-00002-of-00005.array_record'):
        assert (tmp_path / 'out' / name).stat().st_mtime_ns == before[name].st_mtime_ns


def test_unreadable_images_are_left_out_on_request(photos, tmp_path, capsys):
    for name in ('a/0', 'a/1', 'a/2', 'a/3', 'b/4'):  # a whole shard, and one of another
        (photos / f'train/{name}.jpg').write_bytes(b'no image')
    with pytest.raises(UserError, match='cannot be read'):
        quiet(photos, tmp_path / 'out')
    summary = []
    contents = quiet(photos, tmp_path / 'out', on_error='skip', log=summary.append)
    assert contents.splits['train'].total('skipped') == 5
    assert 'train: 13 images in 5 shards' in summary[-1] and '5 left out' in summary[-1]
    assert capsys.readouterr().err.count('left out: ') == 5
    source = PreparedSource(tmp_path / 'out', 'train')
    names = [source[i]['name'] for i in range(len(source))]
    assert names == [f'train/a/{i}.jpg' for i in range(4, 9)] + [
        f'train/b/{i}.jpg' for i in (0, 1, 2, 3, 5, 6, 7, 8)
    ]
    quiet(photos, tmp_path / 'again', on_error='skip')
    assert files(tmp_path / 'out') == files(tmp_path / 'again')


def test_the_difference_is_measured_and_stored(photos, tmp_path):
    summary = []
    quiet(photos, tmp_path / 'out', compared=256, log=summary.append)
    train = read_contents(tmp_path / 'out').splits['train']
    assert train.total('compared') == 18
    assert 0.1 < train.total('train_difference') / 18 < 30
    mean = train.total('eval_difference') / 18
    assert f'{mean:.3f} an evaluation crop' in summary[-1] and 'images/s' in summary[-1]
    assert train.total('source_bytes') == sum(
        f.stat().st_size for f in (photos / 'train').rglob('*.jpg')
    )
    quiet(photos, tmp_path / 'same', short_side=256)  # nothing is reduced
    same = read_contents(tmp_path / 'same').splits['train']
    assert same.total('train_difference') == same.total('eval_difference') == 0


def test_a_directory_prepared_differently_is_refused_until_overwritten(photos, tmp_path):
    out = tmp_path / 'out'
    quiet(photos, out)
    for options, message in (
        ({'short_side': 40}, '--short_side was 32, now 40'),
        ({'quality': 80, 'channels': 1}, '--quality was 95, now 80; --channels was 3, now 1'),
        ({'shard_examples': 5}, 'images a shard of train was 4, now 5'),
        ({'splits': ['train']}, 'the source of validation was folder:2:.*, now unset'),
    ):
        with pytest.raises(UserError, match=f'prepared differently.*{message}.*--overwrite'):
            quiet(photos, out, **options)
    (photos / 'train/a/new.jpg').write_bytes((photos / 'train/a/1.jpg').read_bytes())
    with pytest.raises(UserError, match='the source of train was folder:18:.*, now folder:19:'):
        quiet(photos, out)
    quiet(photos, out, overwrite=True, shard_examples=100)
    quiet(photos, tmp_path / 'fresh', shard_examples=100)
    assert files(out) == files(tmp_path / 'fresh')


def test_overwrite_keeps_shards_of_the_same_options(photos, tmp_path):
    out = tmp_path / 'out'
    quiet(photos, out)
    before = {f.name: f.stat().st_mtime_ns for f in out.glob('*.array_record')}
    (out / 'train-00003-of-00005.array_record').unlink()
    quiet(photos, out, overwrite=True)
    after = {f.name: f.stat().st_mtime_ns for f in out.glob('*.array_record')}
    assert [f for f in before if before[f] != after[f]] == ['train-00003-of-00005.array_record']


def test_overwriting_that_was_killed_continues(photos, complete, tmp_path, monkeypatch):
    """Killed while it deletes shards, it leaves a directory that is still a prepared data set."""
    out = tmp_path / 'out'
    quiet(photos, out, shard_examples=5)
    allowed, remove = iter(range(2)), os.remove

    def killed(path):
        if next(allowed, None) is None:
            raise KeyboardInterrupt
        remove(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, 'remove', killed)
        quiet(photos, out, overwrite=True)
    assert len(list(out.glob('*.array_record'))) == 3
    with pytest.raises(UserError, match='prepared differently'):
        quiet(photos, out)
    quiet(photos, out, overwrite=True)
    assert files(out) == complete


def test_a_damaged_dataset_json_is_overwritten_on_request(photos, complete, tmp_path):
    out = tmp_path / 'out'
    quiet(photos, out)
    (out / 'dataset.json').write_text('{')
    with pytest.raises(UserError, match=r'dataset\.json is damaged.*--overwrite'):
        quiet(photos, out)
    quiet(photos, out, overwrite=True)
    assert files(out) == complete


def test_other_names_of_classes_are_refused_among_many(tmp_path):
    for i in range(60):
        folder = tmp_path / 'photos' / 'train' / f'class{i:02}'
        folder.mkdir(parents=True)
        smooth_picture(i, 8, 8).save(folder / '0.png')
    quiet(tmp_path / 'photos', tmp_path / 'out', shard_examples=100)
    content = json.loads((tmp_path / 'out/dataset.json').read_text())
    content['splits']['train']['class_names'][59] = 'other'
    (tmp_path / 'out/dataset.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'\(class 59 of train was other, now class59\)'):
        quiet(tmp_path / 'photos', tmp_path / 'out', shard_examples=100)


def test_a_directory_with_other_files_is_not_changed(photos, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'thesis.tex').write_text('years of work')
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r'contains other files \(thesis\.tex\)'):
            quiet(photos, out, overwrite=overwrite)
    assert files(out) == {'thesis.tex': b'years of work'}


def test_a_flat_folder_keeps_its_held_out_share(tmp_path):
    (tmp_path / 'flat').mkdir()
    for i in range(30):
        smooth_picture(i, 40, 40).save(tmp_path / 'flat' / f'{i}.png')
    quiet(tmp_path / 'flat', tmp_path / 'out')
    for split in ('train', 'validation'):
        theirs = make_source('folder', split, path=str(tmp_path / 'flat'))
        ours = PreparedSource(tmp_path / 'out', split)
        assert [ours[i]['name'] for i in range(len(ours))] == [f'{split}/{f}' for f in theirs.files]
        assert (ours.num_classes, ours[0]['label']) == (0, -1)


def test_deep_data_and_unusual_names_are_prepared(tmp_path):
    (tmp_path / 'deep').mkdir()
    rng = np.random.default_rng(0)
    names = ['a b.npy', 'ü.npy', '日本.npy']
    for name in names:
        np.save(tmp_path / 'deep' / name, rng.integers(0, 4000, (40, 48, 6)).astype(np.uint16))
    quiet(tmp_path / 'deep', tmp_path / 'out', channels=6)
    records = []
    for split in ('train', 'validation'):
        source = PreparedSource(tmp_path / 'out', split)
        records += [source[i] for i in range(len(source))]
    assert sorted(r['name'].split('/')[1] for r in records) == sorted(names)
    assert {np.load(io.BytesIO(r['image'])).shape for r in records} == {(32, 38, 6)}


@pytest.mark.slow
def test_worker_processes_prepare_a_data_set_of_tfds_with_the_same_bytes(tmp_path):
    from helpers.tfds_photos import TinyPhotos

    TinyPhotos(data_dir=tmp_path, file_format='array_record').download_and_prepare()
    options = dict(data_dir=str(tmp_path), short_side=16, compared=256)  # as in the workers
    quiet('tiny_photos', tmp_path / 'alone', **options)
    quiet('tiny_photos', tmp_path / 'out', **options, workers=2)
    assert files(tmp_path / 'alone') == files(tmp_path / 'out')
    for split, count in (('train', 8), ('validation', 3)):
        theirs = make_source('tiny_photos', split, path=str(tmp_path))
        ours = make_source('prepared', split, path=str(tmp_path / 'out'))
        assert (len(ours), ours.class_names) == (count, ['cat', 'dog'])
        for i in range(count):
            record, expected = ours[i], theirs[i]
            assert (record['label'], record['name']) == (expected['label'], expected['name'])
            assert Image.open(io.BytesIO(record['image'])).size == (24, 16)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'short_side': 0}, '--short_side 0 must be'),
        ({'quality': 101}, '--quality 101'),
        ({'workers': 0}, '--workers 0'),
        ({'splits': ()}, '--splits names no split'),
        ({'splits': ('train[:9]',)}, 'prepared whole'),
        ({'splits': ('tset',)}, "no split 'tset'"),
        ({'destination': 'gs://bucket/x'}, 'no local directory'),
        ({'source': '/no/such/folder'}, '/no/such/folder is not a folder'),
        ({'source': 'digits'}, 'nothing to prepare'),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(photos, tmp_path, options, message):
    options = {'source': str(photos), 'destination': str(tmp_path / 'out')} | options
    with pytest.raises(UserError) as error:
        prepare(**options)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert not (tmp_path / 'out').exists()


def test_a_full_disk_is_an_error_and_the_same_command_continues(photos, complete, tmp_path):
    message = 'out.*cannot be written .*too large.: make room'
    with pytest.raises(UserError, match=message), files_no_larger_than(4096):
        quiet(photos, tmp_path / 'out')
    assert not (tmp_path / 'out/train-00000-of-00005.array_record').exists()
    quiet(photos, tmp_path / 'out')
    assert files(tmp_path / 'out') == complete
