"""Reading prepared data sets: the examples of the source, and errors for damaged files."""

import json
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from helpers.images import smooth_picture

from mae_jax.data.images.decode import BadImage
from mae_jax.data.loader.batches import make_loader
from mae_jax.data.prepare.prepare import prepare
from mae_jax.data.sources.make import make_source
from mae_jax.data.sources.prepared import PreparedSource
from mae_jax.data.sources.prepared_format import unpack
from mae_jax.errors import UserError


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """Returns a folder of 20 training and 4 validation images, and the data set made from it."""
    root = tmp_path_factory.mktemp('photos')
    for split, count in (('train', 10), ('val', 2)):
        for label, name in enumerate(('cat', 'größe')):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture = smooth_picture(100 * label + i, 40 + 3 * i, 32 + 2 * i)
                picture.save(root / split / name / f'{i}.jpg')
    out = tmp_path_factory.mktemp('prepared')
    prepare(str(root), str(out), shard_examples=8, workers=1, log=lambda text: None)
    return root, out


@pytest.fixture
def out(shared, tmp_path):
    """Returns a copy of the prepared data set whose files may be changed."""
    for file in shared[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(out, change):
    content = json.loads((out / 'dataset.json').read_text())
    change(content)
    (out / 'dataset.json').write_text(json.dumps(content))


def test_order_labels_names_and_bytes_are_those_of_the_folder(shared):
    root, out = shared
    for split in ('train', 'validation'):
        theirs = make_source('folder', split, path=str(root))
        ours = make_source('prepared', split, path=str(out))
        assert (len(ours), ours.num_classes) == (len(theirs), 2)
        assert ours.class_names == ['cat', 'größe']
        for i in range(len(ours)):
            assert ours[i]['image'] == theirs[i]['image']  # none is larger than 256
            assert ours[i]['label'] == theirs[i]['label']
            assert ours[i]['name'] == f'{split}/{theirs.files[i]}'
    for split in ('val', 'test'):  # they stand for validation
        assert len(make_source('prepared', split, path=str(out))) == 4
    with pytest.raises(IndexError):
        ours[len(ours)]


def test_batches_are_those_of_the_folder_where_nothing_was_reduced(shared):
    root, out = shared
    options = {'batch_size': 5, 'rows': range(5), 'seed': 3, 'image_size': (16, 16)}
    theirs = make_loader(make_source('folder', 'train', path=str(root)), **options)
    ours = make_loader(make_source('prepared', 'train', path=str(out)), **options, threads=3)
    with ours.iterate(0, 6) as batches:
        for step, batch in enumerate(batches):
            expected = theirs.batch_at(step)
            np.testing.assert_array_equal(batch['image'], expected['image'])
            np.testing.assert_array_equal(batch['label'], expected['label'])


@pytest.mark.slow
def test_worker_processes_read_the_same(shared):
    source = make_source('prepared', 'train', path=str(shared[1]))
    source[0]  # opens a shard, which is not pickled
    options = {'batch_size': 5, 'rows': range(5), 'seed': 3, 'image_size': (16, 16)}
    loader = make_loader(source, **options)
    with make_loader(source, **options, workers=2).iterate(0, 4) as batches:
        for step, batch in enumerate(batches):
            np.testing.assert_array_equal(batch['image'], loader.batch_at(step)['image'])


def test_threads_and_copies_read_the_same(shared):
    source = make_source('prepared', 'train', path=str(shared[1]))
    expected = [make_source('prepared', 'train', path=str(shared[1]))[i] for i in range(20)]
    order = np.random.default_rng(0).integers(0, 20, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, order)) == [expected[i] for i in order]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity and copy[7] == expected[7]


def test_a_record_has_the_documented_bytes(shared):
    source = make_source('prepared', 'train', path=str(shared[1]))
    name = 'train/größe/1.jpg'.encode()
    image = source[11]['image']
    record = struct.pack('<i', 1) + struct.pack('<I', len(name)) + name + image
    assert unpack(record) == source[11]
    for broken in (b'', record[:7], struct.pack('<iI', 1, 1 << 31) + b'x'):
        with pytest.raises(ValueError, match='record'):
            unpack(broken)


def test_identity_differs_between_splits_and_options_and_not_between_paths(shared, tmp_path):
    root, out = shared
    identities = {PreparedSource(out, split).identity for split in ('train', 'validation')}
    for i, options in enumerate(({'short_side': 33}, {'quality': 90})):
        folder = str(tmp_path / str(i))
        prepare(str(root), folder, **options, workers=1, log=lambda text: None)
        identities.add(PreparedSource(folder, 'train').identity)
    assert len(identities) == 4
    moved = out.rename(out.with_name('moved'))
    try:
        assert PreparedSource(moved, 'train').identity in identities
    finally:
        moved.rename(out)


def test_identity_depends_on_the_names_of_the_classes(out):
    before = PreparedSource(out, 'train').identity
    edit(out, change_of('splits', 'train', 'class_names', 1, value='dog'))
    assert PreparedSource(out, 'train').identity != before


def test_a_directory_that_was_not_prepared_is_refused_with_the_command(tmp_path):
    with pytest.raises(UserError, match='mae-jax prepare SRC'):
        make_source('prepared', 'train', path=str(tmp_path))
    with pytest.raises(UserError, match=r'needs dataset\.path'):
        make_source('prepared', 'train')


def test_the_error_of_a_missing_split_lists_the_existing_ones(shared):
    with pytest.raises(UserError, match="no split 'extra'; it has train, validation"):
        make_source('prepared', 'extra', path=str(shared[1]))


def test_other_channels_than_those_prepared_are_refused(shared):
    assert len(PreparedSource(shared[1], 'train', channels=3)) == 20
    message = r'dataset\.channels=1, but .* was prepared with 3.*--channels=1'
    with pytest.raises(UserError, match=message):
        PreparedSource(shared[1], 'train', channels=1)


def test_an_incomplete_data_set_is_not_read(out):
    shard = out / 'train-00001-of-00003.array_record'
    content = shard.read_bytes()
    shard.write_bytes(content[:100])
    with pytest.raises(UserError, match=r'train-00001.*100 bytes.*goes on'):
        make_source('prepared', 'train', path=str(out))
    shard.unlink()
    with pytest.raises(UserError, match='train-00001.*cannot be read'):
        make_source('prepared', 'train', path=str(out))
    assert len(make_source('prepared', 'validation', path=str(out))) == 4
    edit(out, lambda content: content['splits']['train']['shards'].__setitem__(1, None))
    with pytest.raises(UserError, match='1 of 3 shards of train are not written'):
        make_source('prepared', 'train', path=str(out))


def test_a_damaged_record_is_a_bad_image_and_the_others_are_read(out):
    shard = out / 'train-00000-of-00003.array_record'
    content = bytearray(shard.read_bytes())
    source = make_source('prepared', 'train', path=str(out))
    at = content.index(source[3]['image'][-40:])
    content[at : at + 20] = bytes(20)
    shard.write_bytes(content)
    source = make_source('prepared', 'train', path=str(out))
    with pytest.raises(BadImage, match=r'Record 3 of .*train-00000-of-00003.*damaged'):
        source[3]
    assert source[4]['name'] == 'train/cat/4.jpg'


def test_a_shard_with_other_content_is_damaged(out):
    shard = out / 'train-00002-of-00003.array_record'
    size = shard.stat().st_size
    shard.write_bytes(bytes(size))
    source = make_source('prepared', 'train', path=str(out))
    with pytest.raises(UserError, match='train-00002.*(damaged|cannot be opened)'):
        source[19]
    writer = ArrayRecordWriter(str(shard), 'group_size:1,uncompressed')
    for _ in range(4):
        writer.write(b'\x00' * 4 + b'\xff' * 4)
    writer.close()
    edit(
        out,
        lambda content: content['splits']['train']['shards'][2].update(bytes=shard.stat().st_size),
    )
    source = make_source('prepared', 'train', path=str(out))
    with pytest.raises(BadImage, match='not one of our records'):
        source[19]


def change_of(*keys, value):
    """Returns a function that sets an entry of a nested dictionary or list."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    'change',
    [
        change_of('format', value=2),
        change_of('splits', value=[]),
        change_of('splits', '../../etc/passwd', value={}),
        lambda content: content['splits'].update({'../x': content['splits']['train']}),
        change_of('splits', 'train', 'source_examples', value=1 << 60),
        change_of('splits', 'train', 'source_examples', value=10**30),
        change_of('splits', 'train', 'shard_examples', value=0),
        change_of('splits', 'train', 'shard_examples', value='8'),
        change_of('splits', 'train', 'shards', value=[None] * 100_000),
        change_of('splits', 'train', 'shards', 0, 'examples', value=9),
        change_of('splits', 'train', 'shards', 0, 'examples', value=-1),
        change_of('splits', 'train', 'shards', 0, 'examples', value=8.0),
        change_of('splits', 'train', 'shards', 0, 'file', value='/etc/passwd'),
        change_of('splits', 'train', 'shards', 0, value='/etc/passwd'),
        change_of('splits', 'train', 'shards', 0, 'train_difference', value=float('nan')),
        change_of('splits', 'train', 'class_names', value=[1, 2]),
        change_of('splits', 'train', 'class_names', value=3),
        change_of('splits', 'train', 'identity', value=None),
    ],
)
def test_a_dataset_json_with_invalid_entries_is_damaged(out, change):
    edit(out, change)
    with pytest.raises(UserError, match=r'dataset\.json is damaged'):
        make_source('prepared', 'train', path=str(out))


@pytest.mark.parametrize('text', ['', '[]', 'null', '{}', '[' * 100_000])
def test_a_dataset_json_without_content_is_damaged(out, text):
    (out / 'dataset.json').write_text(text)
    with pytest.raises(UserError, match=r'dataset\.json is damaged'):
        make_source('prepared', 'train', path=str(out))


def test_a_wrong_number_of_records_is_an_error(out):
    edit(out, change_of('splits', 'train', 'shards', 0, 'examples', value=7))
    source = make_source('prepared', 'train', path=str(out))
    with pytest.raises(UserError, match='has 8 records, not 7'):
        source[0]
