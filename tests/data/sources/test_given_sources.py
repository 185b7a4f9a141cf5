"""Sources made in Python: arrays, lists of files, tables, data sets of Hugging Face."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from mae_jax.data.images.decode import decode
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.sources.files import FileSource
from mae_jax.data.sources.huggingface import HuggingFaceSource
from mae_jax.data.sources.make import make_source
from mae_jax.data.sources.subset import hold_out
from mae_jax.errors import UserError

IMAGES = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)


@pytest.fixture
def photos(tmp_path):
    """Five PNGs, 0.png to 4.png, of `IMAGES`."""
    for number, pixels in enumerate(IMAGES):
        Image.fromarray(pixels).save(tmp_path / f'{number}.png')
    return tmp_path


def labels_of(source):
    return [source[index]['label'] for index in range(len(source))]


@pytest.mark.parametrize(
    ('labels', 'names', 'expected', 'classes'),
    [
        (['cat', 'ant', 'cat', 'bee', 'ant'], None, [2, 0, 2, 1, 0], ['ant', 'bee', 'cat']),
        (['b', 'a', 'b', 'b', 'a'], ['b', 'a', 'z'], [0, 1, 0, 0, 1], ['b', 'a', 'z']),
        ([1, 0, 3, -1, 0], None, [1, 0, 3, -1, 0], ['0', '1', '2', '3']),
        (np.array([1.0, 0, 1, 0, 0]), ('x', 'y'), [1, 0, 1, 0, 0], ['x', 'y']),
        (None, None, [-1] * 5, []),
    ],
)
def test_labels_are_numbers_or_names(photos, labels, names, expected, classes):
    files = [photos / f'{number}.png' for number in range(5)]
    for source in (ArraySource(IMAGES, labels, names), FileSource(files, labels, names)):
        assert labels_of(source) == expected
        assert list(source.class_names) == classes and source.num_classes == len(classes)


@pytest.mark.parametrize(
    ('labels', 'names', 'message'),
    [
        ([0, 1], None, r'labels of shape \(2,\) for 5 examples'),
        ([0, 1, 2, 0, 0], ['a', 'b'], 'the label 2 is not one of 2 classes'),
        ([0, -2, 0, 0, 0], None, 'the label -2 is not one of 1 classes'),
        (['a', 'c', 'a', 'a', 'a'], ['a', 'b'], "the label 'c' is not in class_names"),
        ([0.5] * 5, None, 'give whole numbers, or names'),
    ],
)
def test_a_wrong_label_is_named(labels, names, message):
    with pytest.raises(UserError, match=message):
        ArraySource(IMAGES, labels, names)


@pytest.mark.parametrize(
    'images', [np.zeros((0, 4, 4, 3)), np.zeros((5, 4, 4, 3, 1)), np.array(['a', 'b'])]
)
def test_arrays_that_are_no_images_are_refused(images):
    with pytest.raises(UserError, match=r'give numbers \[N, H, W, C\]'):
        ArraySource(images)


def test_grey_arrays_get_a_channel():
    assert ArraySource(IMAGES[..., 0])[3]['image'].shape == (4, 4, 1)


def test_listed_files_are_read_and_named(photos):
    source = FileSource(['3.png', '1.png'], ['a', 'b'], root=photos)
    assert source[0]['name'] == str(photos / '3.png')
    np.testing.assert_array_equal(decode(source[0], 3), IMAGES[3])
    assert pickle.loads(pickle.dumps(source)).identity == source.identity


def test_missing_files_are_counted_and_one_is_named(photos):
    with pytest.raises(UserError, match=r'2 of 3 files do not exist, such as .*x\.png'):
        FileSource(['x.png', '1.png', 'y.png'], root=photos)
    with pytest.raises(UserError, match='there is no file'):
        FileSource([])


def test_identity_is_that_of_names_order_labels_and_classes(photos, tmp_path):
    sources = [
        FileSource(['0.png', '1.png'], ['a', 'b'], root=photos),
        FileSource(['1.png', '0.png'], ['a', 'b'], root=photos),
        FileSource(['0.png', '1.png'], ['b', 'a'], root=photos),
        FileSource(['0.png', '1.png'], [0, 1], root=photos),
        FileSource(['0.png', '1.png'], root=photos),
        FileSource(['0.png'], ['a'], root=photos),
    ]
    assert len({source.identity for source in sources}) == 6
    (tmp_path / 'moved').mkdir()
    for name in ('0.png', '1.png'):
        os.replace(photos / name, tmp_path / 'moved' / name)
    moved = FileSource(['0.png', '1.png'], ['a', 'b'], root=tmp_path / 'moved')
    assert moved.identity == sources[0].identity


TABLE = 'file,class,split\n3.png,dog,train\n1.png,cat,train\n0.png,dog,valid\n2.png,,train\n'


def test_a_table_gives_files_labels_and_splits(photos):
    (photos / 'table.csv').write_text('\ufeff' + TABLE, encoding='utf-8')
    whole = FileSource.from_csv(photos / 'table.csv')
    assert whole.files == ['3.png', '1.png', '0.png', '2.png']
    assert labels_of(whole) == [1, 0, 1, -1] and whole.class_names == ['cat', 'dog']
    path = str(photos / 'table.csv')
    train, valid = (make_source('csv', split, path=path) for split in ('train', 'valid'))
    assert labels_of(train) == [1, 0, -1] and labels_of(valid) == [1]
    assert train.class_names == valid.class_names == ['cat', 'dog']
    assert train.identity != valid.identity != whole.identity
    np.testing.assert_array_equal(decode(valid[0], 3), IMAGES[0])


def test_columns_are_chosen_and_numbers_are_in_their_order(photos):
    (photos / 'table.csv').write_text('id,photo,target\na,0.png,10\nb,1.png,9\nc,2.png,10\n')
    source = FileSource.from_csv(photos / 'table.csv', image='photo', label='target', root=photos)
    assert source.class_names == ['9', '10'] and labels_of(source) == [1, 0, 1]


def test_a_table_without_splits_holds_some_of_each_class_out(photos):
    rows = ''.join(f'{number % 5}.png,{number % 3}\n' for number in range(60))
    (photos / 'table.csv').write_text('image,label\n' + rows)
    path = str(photos / 'table.csv')
    train, held_out = (make_source('csv', split, path=path) for split in ('train', 'test'))
    assert (len(train), len(held_out)) == (48, 12)
    assert list(np.bincount(held_out.labels)) == [4, 4, 4]
    assert sorted([*train.rows, *held_out.rows]) == list(range(60))
    assert labels_of(train) == list(train.labels) and train.num_classes == 3


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('name,label\n0.png,a\n', 'has no column image or file or .* it has name, label'),
        ('image\n', 'has no row'),
        ('image,label\n0.png\n', 'row 2: it has another number of columns'),
        ('image,label\nx.png,a\n', r'1 of 1 files do not exist, such as .*x\.png'),
        (b'image\n\xff\n', 'cannot be read as CSV'),
    ],
)
def test_a_table_that_cannot_be_read_is_explained(photos, text, message):
    (photos / 'table.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        make_source('csv', 'train', path=str(photos / 'table.csv'))


def test_a_split_that_a_table_lacks_is_named(photos):
    (photos / 'table.csv').write_text(TABLE)
    with pytest.raises(UserError, match=r"no split 'holdout'; it has train, valid"):
        make_source('csv', 'holdout', path=str(photos / 'table.csv'))
    with pytest.raises(UserError, match=r'needs dataset\.path'):
        make_source('csv', 'train')


def test_held_out_examples_are_the_same_at_every_start():
    source = ArraySource(np.zeros((100, 2, 2, 1), np.uint8), np.arange(100) % 10)
    (train, held_out), again = hold_out(source), hold_out(source)
    assert len(held_out) == 20 and not set(train.rows) & set(held_out.rows)
    assert list(np.bincount(held_out.labels)) == [2] * 10
    assert held_out.identity == again[1].identity != train.identity
    assert held_out[2]['name'] == f'array/{held_out.rows[2]}'
    with pytest.raises(UserError, match='one image only'):
        hold_out(ArraySource(IMAGES[:1]))


def test_data_sets_of_hugging_face_are_read_by_this_package():
    datasets = pytest.importorskip('datasets')

    def png(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, 'png')
        return {'bytes': file.getvalue(), 'path': None}

    features = datasets.Features(
        {
            'photo': datasets.Image(),
            'kind': datasets.ClassLabel(names=['b', 'a']),
            'text': datasets.Value('string'),
        }
    )
    columns = {'photo': [png(x) for x in IMAGES], 'kind': [1, 0, 1, 1, 0], 'text': list('xyxyx')}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    source = HuggingFaceSource(dataset)
    assert source.class_names == ['b', 'a'] and labels_of(source) == [1, 0, 1, 1, 0]
    for index, pixels in enumerate(IMAGES):
        np.testing.assert_array_equal(decode(source[index], 3), pixels)
    again = HuggingFaceSource(datasets.Dataset.from_dict(columns, features=features))
    assert again.identity == source.identity  # the library's own fingerprint may differ
    assert pickle.loads(pickle.dumps(source)).identity == source.identity
    reordered = HuggingFaceSource(dataset.select([1, 0, 2, 3, 4]))
    assert reordered.identity != source.identity
    texts = HuggingFaceSource(dataset, label='text')
    assert texts.class_names == ['x', 'y'] and labels_of(texts) == [0, 1, 0, 1, 0]
    with pytest.raises(UserError, match="no column of labels 'sort'; it has photo, kind, text"):
        HuggingFaceSource(dataset, label='sort')
    with pytest.raises(UserError, match=r'an? IterableDataset is not a datasets\.Dataset'):
        HuggingFaceSource(dataset.to_iterable_dataset())
