"""Folders of images and masks: pairs, splits, classes, colours, and what is refused."""

import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
from helpers.pairs import blocks, write_pairs
from PIL import Image

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.masks import read_mask
from mae_jax.data.sources.classes import class_colours
from mae_jax.data.sources.make import make_source
from mae_jax.data.sources.splits import NoSplit
from mae_jax.errors import UserError

SIZES = [(20, 12), (12, 20), (16, 16)]


def open_pairs(root, split='train', num_classes=5, held_out_share=None, **masks):
    return make_source(
        'paired_folders',
        split,
        path=str(root),
        held_out_share=held_out_share,
        masks=dict(num_classes=num_classes, **masks),
    )


def names(source):
    return [source[i]['name'].split('/')[-1] for i in range(len(source))]


@pytest.fixture
def root(tmp_path):
    write_pairs(tmp_path, 'training', SIZES)
    write_pairs(tmp_path, 'validation', SIZES[:2], first=10)
    return tmp_path


def test_an_image_and_its_mask_are_paired_by_name(root):
    (root / 'images/training/deep').mkdir()
    (root / 'annotations/training/deep').mkdir()
    Image.new('RGB', (4, 4)).save(root / 'images/training/deep/x.y.PNG')
    Image.new('L', (4, 4)).save(root / 'annotations/training/deep/x.y.png')
    (root / 'images/training/.hidden.jpg').write_bytes(b'x')
    train = open_pairs(root)
    assert names(train) == ['000.jpg', '001.jpg', '002.jpg', 'x.y.PNG']
    assert train[1]['image'] == (root / 'images/training/001.jpg').read_bytes()
    assert train[1]['mask'] == (root / 'annotations/training/001.png').read_bytes()
    assert train[3]['mask_name'] == str(root / 'annotations/training/deep/x.y.png')
    assert train[0]['label'] == -1
    assert [train.mask_size(i) for i in range(4)] == [(12, 20), (20, 12), (16, 16), (4, 4)]


def test_splits_are_read_under_any_of_their_names(root):
    write_pairs(root, 'test', SIZES[:1], first=20)
    assert names(open_pairs(root, 'validation')) == ['010.jpg', '011.jpg']
    assert names(open_pairs(root, 'test')) == ['020.jpg']
    assert names(open_pairs(root, 'training')) == names(open_pairs(root))
    with pytest.raises(UserError, match=r"no split 'tiny'; it has test, training, validation"):
        open_pairs(root, 'tiny')


def test_a_set_says_in_one_line_what_was_read(root):
    write_pairs(root, 'extra', SIZES[:1])
    (root / 'images/training/notes.txt').write_text('no image')
    (root / 'classes.txt').write_text('a\nb\nc\nd\ne\n')
    train, held_out = (open_pairs(root, split) for split in ('train', 'validation'))
    assert train.reading == (
        '3 pairs in images/training/, 5 classes (named in classes.txt)',
        'passed over 1 .txt',
    )
    assert held_out.reading == (
        '2 pairs held out in images/validation/, 5 classes (named in classes.txt)',
        'not read: extra/',
    )


@pytest.mark.parametrize('split', ['train', ''])
def test_without_an_evaluation_split_some_pairs_are_held_out(tmp_path, split):
    write_pairs(tmp_path, split, [(4, 4)] * 60)
    train, held_out = (open_pairs(tmp_path, each) for each in ('train', 'validation'))
    assert sorted(names(train) + names(held_out)) == [f'{i:03d}.jpg' for i in range(60)]
    assert 1 <= len(held_out) < 12
    assert len(open_pairs(tmp_path, 'val', held_out_share=0.5)) > 20
    place = f'images/{split}/'.replace('//', '/')
    expected = f'60 pairs in {place}, {len(held_out)} held out (no val/), 5 classes'
    assert (train.reading, held_out.reading) == ((expected,), ())


@pytest.mark.parametrize('folder', ['masks', 'labels'])
def test_masks_may_lie_in_a_folder_of_another_name(root, folder):
    (root / 'annotations').rename(root / folder)
    assert len(open_pairs(root)) == 3


def test_a_source_can_be_pickled_and_is_known_by_the_names_of_its_files(root, tmp_path_factory):
    train = open_pairs(root)
    copy = pickle.loads(pickle.dumps(train))
    assert copy[2] == train[2] and copy.identity == train.identity
    other = tmp_path_factory.mktemp('other')
    write_pairs(other, 'train', SIZES)
    assert open_pairs(other).identity != train.identity  # training/ and train/
    write_pairs(root, 'training', SIZES[:1], first=3)
    assert open_pairs(root).identity != train.identity


def test_classes_have_the_names_and_colours_of_their_file(root):
    (root / 'classes.txt').write_text(
        '\ufeff# the classes\nroad 128 64 128\n\ntraffic light, 250, 170, 30\nsky\t0;1;2\n'
    )
    train = open_pairs(root, num_classes=None)
    assert train.class_names == ['road', 'traffic light', 'sky']
    assert class_colours(train).tolist() == [[128, 64, 128], [250, 170, 30], [0, 1, 2]]
    (root / 'mine.txt').write_text('a\nb\n')
    assert open_pairs(root, num_classes=None, classes=str(root / 'mine.txt')).class_names == [
        'a',
        'b',
    ]


@pytest.mark.parametrize('first', [0, 1])
def test_colours_are_those_of_the_palette_of_a_mask(root, first):
    mask = Image.fromarray(blocks(0, 20, 12), 'P')
    mask.putpalette([(3 * i + band) % 256 for i in range(256) for band in range(3)])
    mask.save(root / 'annotations/training/000.png')
    train = open_pairs(root, reduce_zero_label=bool(first))
    numbers = 3 * (np.arange(5) + first)
    np.testing.assert_array_equal(class_colours(train), numbers[:, None] + np.arange(3))
    assert '(colours of the palette)' in train.reading[0]


def test_colours_are_else_those_of_pascal_voc(root):
    voc = [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert class_colours(open_pairs(root)).tolist() == voc
    assert len(np.unique(class_colours(open_pairs(root, num_classes=255)), axis=0)) == 255


def test_without_a_training_split_the_other_is_there_for_an_evaluation(root):
    for kind in ('images', 'annotations'):
        shutil.rmtree(root / kind / 'training')
    with pytest.raises(NoSplit, match=r'images has validation/ but no train/'):
        open_pairs(root)
    held_out = open_pairs(root, 'val')
    assert held_out.images and all('validation' in name for name in held_out.images)
    assert 'held out in images/validation/' in held_out.reading[0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda root: (root / 'annotations/training/001.png').unlink(),
            r'images/training/001\.jpg has no mask in annotations/training, one of 1 such among',
        ),
        (
            lambda root: (root / 'images/training/002.jpg').unlink(),
            r'annotations/training/002\.png has no image in images/training',
        ),
        (
            lambda root: Image.new('L', (4, 4)).save(root / 'images/training/001.png'),
            r'images/training/001\.jpg and 001\.png have the same name but for',
        ),
        (
            lambda root: (root / 'annotations/training').rename(root / 'annotations/train'),
            r'has images/training and no annotations/training: a split',
        ),
        (
            lambda root: (root / 'annotations').rename(root / 'gt'),
            r'needs the folders images/ and annotations/ and has gt/, images/',
        ),
        (
            lambda root: (root / 'images/training').rename(root / 'images/x'),
            r'images has validation/ but no train/',
        ),
        (lambda root: (root / 'classes.txt').write_text('a\nb'), r'num_classes=5, but .*names 2'),
        (lambda root: (root / 'classes.txt').write_text('\n'), r'classes\.txt has no name'),
        (lambda root: (root / 'classes.txt').write_text('a\na'), r'names a twice'),
        (lambda root: (root / 'classes.txt').write_text('a 1 2 256'), r'colour of a has a number'),
        (lambda root: (root / 'classes.txt').write_bytes(b'\xff\xfe'), r'cannot be read as names'),
    ],
)
def test_folders_that_do_not_pair_are_explained_in_one_sentence(root, change, message):
    change(root)
    with pytest.raises(UserError, match=message) as raised:
        open_pairs(root)
    assert str(raised.value).endswith('.') and '\n' not in str(raised.value)


def test_an_unknown_number_of_classes_is_asked_for_with_what_the_masks_hold(root):
    for i in range(3):
        mask = np.array(Image.open(root / f'annotations/training/{i:03d}.png'))
        mask[0, 0] = 255
        Image.fromarray(mask).save(root / f'annotations/training/{i:03d}.png')
    with pytest.raises(UserError, match=r'num_classes \(the largest .* 3 masks is 4\), or'):
        open_pairs(root, num_classes=None)


def test_a_file_that_vanishes_is_named(root):
    train = open_pairs(root)
    (root / 'annotations/training/001.png').unlink()
    for read in (train.__getitem__, train.mask_size):
        with pytest.raises(BadImage, match=r'001\.png cannot be read: No such file'):
            read(1)


def test_a_mask_that_claims_too_much_is_refused_before_it_is_decoded(root, allocations):
    path = root / 'annotations/training/001.png'
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack('>II', 10_000, 9_000)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    path.write_bytes(content)
    train = open_pairs(root)
    for read in (train.mask_size, lambda i: read_mask(train[i]['mask'], train[i]['mask_name'])):
        with pytest.raises(BadImage, match=r'001\.png cannot be .*10,000 x 9,000 pixels'):
            read(1)
    assert allocations() < 2**22


@pytest.mark.parametrize(
    ('path', 'message'),
    [(None, 'needs dataset.path'), ('gs://a/b', 'not a folder on a disk'), ('/nowhere', 'is not')],
)
def test_a_path_that_is_no_folder_is_refused(path, message):
    with pytest.raises(UserError, match=message):
        make_source('paired_folders', 'train', path=path)
