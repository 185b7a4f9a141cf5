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
    """(a folder of 2 x 10 training and 2 x 2 other images, what was prepared of it)."""
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
    """A copy that a test may break."""
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
    for split in ('val', 'test'):  # they find each other
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
    source[0]  # a reader is open
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


def test_the_record_is_what_the_documentation_says(shared):
    source = make_source('prepared', 'train', path=str(shared[1]))
    name = 'train/größe/1.jpg'.encode()
    image = source[11]['image']
    record = struct.pack('<i', 1) + struct.pack('<I', len(name)) + name + image
    assert unpack(record) == source[11]
    for broken in (b'', record[:7], struct.pack('<iI', 1, 1 << 31) + b'x'):
        with pytest.raises(ValueError, match='record'):
            unpack(broken)


def test_identity_tells_what_was_prepared_apart(shared, tmp_path):
    root, out = shared
    identities = {PreparedSource(out, split).identity for split in ('train', 'validation')}
    for i, options in enumerate(({'short_side': 33}, {'quality': 90})):
        there = str(tmp_path / str(i))
        prepare(str(root), there, **options, workers=1, log=lambda text: None)
        identities.add(PreparedSource(there, 'train').identity)
    assert len(identities) == 4
    moved = out.rename(out.with_name('moved'))
    try:
        assert PreparedSource(moved, 'train').identity in identities
    finally:
        moved.rename(out)


def test_identity_tells_the_names_of_the_classes_apart(out):
    before = PreparedSource(out, 'train').identity
    edit(out, lie('splits', 'train', 'class_names', 1, value='dog'))
    assert PreparedSource(out, 'train').identity != before


def test_what_was_not_prepared_names_the_command(tmp_path):
    with pytest.raises(UserError, match='mae-jax prepare SRC'):
        make_source('prepared', 'train', path=str(tmp_path))
    with pytest.raises(UserError, match=r'needs dataset\.path'):
        make_source('prepared', 'train')


def test_a_split_that_is_not_there_is_said(shared):
    with pytest.raises(UserError, match="no split 'extra'; it has train, validation"):
        make_source('prepared', 'extra', path=str(shared[1]))


def test_other_channels_than_those_prepared_are_refused(shared):
    assert len(PreparedSource(shared[1], 'train', channels=3)) == 20
    told = r'dataset\.channels=1, but .* was prepared with 3.*--channels=1'
    with pytest.raises(UserError, match=told):
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


def test_another_shard_under_the_name_is_damaged(out):
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


def lie(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    'change',
    [
        lie('format', value=2),
        lie('splits', value=[]),
        lie('splits', '../../etc/passwd', value={}),
        lambda content: content['splits'].update({'../x': content['splits']['train']}),
        lie('splits', 'train', 'source_examples', value=1 << 60),
        lie('splits', 'train', 'source_examples', value=10**30),
        lie('splits', 'train', 'shard_examples', value=0),
        lie('splits', 'train', 'shard_examples', value='8'),
        lie('splits', 'train', 'shards', value=[None] * 100_000),
        lie('splits', 'train', 'shards', 0, 'examples', value=9),
        lie('splits', 'train', 'shards', 0, 'examples', value=-1),
        lie('splits', 'train', 'shards', 0, 'examples', value=8.0),
        lie('splits', 'train', 'shards', 0, 'file', value='/etc/passwd'),
        lie('splits', 'train', 'shards', 0, value='/etc/passwd'),
        lie('splits', 'train', 'shards', 0, 'train_difference', value=float('nan')),
        lie('splits', 'train', 'class_names', value=[1, 2]),
        lie('splits', 'train', 'class_names', value=3),
        lie('splits', 'train', 'identity', value=None),
    ],
)
def test_a_dataset_json_that_lies_is_damaged(out, change):
    edit(out, change)
    with pytest.raises(UserError, match=r'dataset\.json is damaged'):
        make_source('prepared', 'train', path=str(out))


@pytest.mark.parametrize('text', ['', '[]', 'null', '{}', '[' * 100_000])
def test_a_dataset_json_that_is_none_is_damaged(out, text):
    (out / 'dataset.json').write_text(text)
    with pytest.raises(UserError, match=r'dataset\.json is damaged'):
        make_source('prepared', 'train', path=str(out))


def test_a_count_of_records_that_is_wrong_is_found(out):
    edit(out, lie('splits', 'train', 'shards', 0, 'examples', value=7))
    source = make_source('prepared', 'train', path=str(out))
    with pytest.raises(UserError, match='has 8 records, not 7'):
        source[0]
