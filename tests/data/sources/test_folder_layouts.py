"""Folders as people have them: names of splits, classes without splits, and what is not read."""

import hashlib
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mae_jax.config.data import check_classes
from mae_jax.data.images.decode import decode
from mae_jax.data.sources.listing import EXTENSIONS
from mae_jax.data.sources.make import make_source


def write(root, *names):
    """Writes images; a name is text or bytes."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as file:
            Image.new('RGB', (4, 4)).save(file, 'BMP')


def read(root, split='train', **options):
    return make_source('folder', split, path=str(root), **options)


def labelled(source):
    """Returns the class of each file; None where there are no labels."""
    if source.labels is None:
        return {name: None for name in source.files}
    return {
        name: source.class_names[label]
        for name, label in zip(source.files, source.labels, strict=True)
    }


@pytest.mark.parametrize(
    ('folders', 'split', 'expected'),
    [
        ('train valid test', 'validation', 'valid'),
        ('train valid test', 'test', 'test'),
        ('train val valid validation', 'validation', 'validation'),
        ('train val test', 'validation', 'val'),
        ('train valid', 'val', 'valid'),
        ('train test', 'validation', 'test'),
        ('Train Valid', 'validation', 'Valid'),
        ('TRAIN Validation TEST', 'validation', 'Validation'),
        ('train Train val Val', 'validation', 'val'),
        ('training validation', 'validation', 'validation'),
    ],
)
def test_the_split_that_evaluates_is_the_one_that_is_named(tmp_path, folders, split, expected):
    for folder in folders.split():
        write(tmp_path, *(f'{folder}/{c}/{folder}{i}.jpg' for c in 'ab' for i in range(3)))
    held_out = read(tmp_path, split)
    assert sorted(held_out.files) == sorted(
        f'{c}/{expected}{i}.jpg' for c in 'ab' for i in range(3)
    )
    train = read(tmp_path)
    assert {name[2:-5].lower() for name in train.files} <= {'train', 'training'}
    assert train.class_names == held_out.class_names == ['a', 'b']
    assert f'6 images held out in {expected}/, 2 classes' in held_out.reading
    unread = set(folders.split()) - {expected, os.path.basename(train.root)}
    remark = ''.join(remark for remark in held_out.reading if 'not read' in remark)
    assert all(f'{name}/' in remark for name in unread) and bool(remark) == bool(unread)


def test_folders_are_classes_where_there_is_no_split(tmp_path):
    write(tmp_path, *(f'{c}/{i:02d}.jpg' for c in 'abcdefghij' for i in range(60)))
    train, held_out = read(tmp_path), read(tmp_path, 'validation')
    assert len(train) + len(held_out) == 600
    assert all(count >= 10 for count in np.bincount(held_out.labels))
    assert len(held_out) <= 110
    assert not set(train.files) & set(held_out.files)
    assert train.class_names == held_out.class_names == list('abcdefghij')
    for source in (train, held_out):
        assert all(name[0] == label for name, label in labelled(source).items())
        assert set(source.labels) == set(range(10))  # every class is in both
    assert train.reading == (f'600 images, 10 classes, {len(held_out)} held out (no val/)',)
    hashed = {
        name for name in (*train.files, *held_out.files) if zlib.crc32(name.encode()) % 20 == 0
    }
    assert hashed <= set(held_out.files)


def test_a_class_of_one_image_stays_in_training(tmp_path):
    write(tmp_path, 'a/1.jpg', 'a/2.jpg', 'b/3.jpg', 'c/4.jpg', 'c/5.jpg', 'c/6.jpg')
    train, held_out = read(tmp_path), read(tmp_path, 'test')
    assert 'b/3.jpg' in train.files
    assert sorted(name[0] for name in held_out.files) == ['a', 'c']
    assert (train.num_classes, held_out.num_classes) == (3, 3)


def test_order_and_identity_are_those_of_files_that_were_read_without_labels(tmp_path):
    """Earlier versions read this layout as a flat folder, in the order of whole paths.

    Their runs go on with the share that they held out.
    """
    names = [f'{c}/{i:02d}.jpg' for c in ('a', 'a b', 'b', 'ü') for i in range(40)]
    write(tmp_path, *names)
    flat = sorted(name for name in names if zlib.crc32(name.encode()) % 20)
    train = read(tmp_path, held_out_share=0.05)
    assert train.files == flat
    assert set(read(tmp_path).files) < set(flat)  # more are held out by the rule
    digest = hashlib.sha256('\0'.join(flat).encode()).hexdigest()[:16]
    assert train.identity == f'folder:{len(flat)}:{digest}'


@pytest.mark.parametrize(
    ('names', 'remark'),
    [
        (['a/1.jpg', 'a/2.jpg', 'b/3.jpg', 'top.jpg'], 'top.jpg and others lie beside the folders'),
        (['a/1.jpg', 'a/2.jpg'], 'no classes'),
        (['images/train/1.jpg', 'images/val/2.jpg'], 'there is a train/ in images/train'),
    ],
)
def test_what_has_no_labels_says_why(tmp_path, names, remark):
    write(tmp_path, *names)
    train = read(tmp_path)
    assert train.labels is None
    assert remark in '; '.join(train.reading)


@pytest.mark.parametrize('lacking', ['b', 'c'])
def test_an_evaluation_split_may_lack_a_class_or_have_an_empty_one(tmp_path, lacking):
    present = [c for c in 'abc' if c != lacking]
    write(tmp_path, *(f'train/{c}/{i}.jpg' for c in 'abc' for i in range(2)))
    write(tmp_path, *(f'val/{c}/9.jpg' for c in present))
    for make_empty in (False, True):
        if make_empty:
            (tmp_path / 'val' / lacking).mkdir()
        held_out = read(tmp_path, 'val')
        assert labelled(held_out) == {f'{c}/9.jpg': c for c in present}
        assert held_out.class_names == ['a', 'b', 'c']  # labels mean what they do in training
        assert f'none of {lacking}' in held_out.reading
        check_classes(read(tmp_path), held_out)


def test_other_files_are_counted_and_named(tmp_path):
    write(tmp_path, 'train/a/1.jpg', 'train/a/2.heif', 'train/a/notes.TXT', 'train/a/x.txt')
    write(tmp_path, 'train/a/README', 'train/a/.DS_Store', 'val/a/3.jpg', 'val/a/4.xcf')
    reading = '; '.join(read(tmp_path).reading)
    assert '2 .txt' in reading and '1 without a suffix' in reading
    assert '.DS_Store' not in reading
    assert 'passed over 1 .xcf' in '; '.join(read(tmp_path, 'val').reading)
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        assert '1 .heif' in reading and 'pip install pillow-heif' in reading


def test_files_that_pillow_reads_are_read_by_any_of_their_suffixes(tmp_path):
    kinds = {'.npy': None, '.jp2': 'JPEG2000', '.j2k': 'JPEG2000', '.avif': 'AVIF', '.tif': 'TIFF'}
    for suffix in EXTENSIONS:
        path = tmp_path / f'1{suffix.upper()}'
        if suffix == '.npy':
            with path.open('wb') as file:
                np.save(file, np.zeros((4, 4, 3), np.uint8))
        else:
            kind = kinds.get(suffix, Image.registered_extensions().get(suffix))
            with path.open('wb') as file:
                Image.new('RGB', (4, 4)).save(file, kind)
    source = read(tmp_path)
    held_out = read(tmp_path, 'val')
    assert len(source) + len(held_out) == len(EXTENSIONS)
    assert {'.jfif', '.jpe', '.ppm', '.pgm', '.avif', '.jp2'} <= set(EXTENSIONS)
    for part in (source, held_out):
        for index in range(len(part)):
            assert np.asarray(decode(part[index], 3)).shape == (4, 4, 3)


NAMES = [
    'é/1.jpg',
    'é/2.jpg',
    'z/ü.jpg',
    'z/𝄞.jpg',
    'z/\uffee.jpg',
    *(f'z/{i}.jpg' for i in range(40)),
]
SCRIPT = """
import sys
from mae_jax.data.sources.make import make_source
from mae_jax.files.paths import print_text
for split in ('train', 'val'):
    source = make_source('folder', split, path=sys.argv[1])
    records = [source[i] for i in range(len(source))]
    print(source.identity, ascii(source.class_names), [r['label'] for r in records])
print_text(records[0]['name'] + str(source.class_names) + str(source.reading))
"""


@pytest.mark.slow
def test_names_are_read_alike_in_every_locale(tmp_path):
    write(tmp_path, *NAMES)
    outputs = []
    for variables in (
        {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'},
        {'PYTHONUTF8': '1'},
    ):
        command = [sys.executable, '-c', SCRIPT, str(tmp_path)]
        result = subprocess.run(command, env=os.environ | variables, capture_output=True)
        assert result.returncode == 0, result.stderr.decode()
        outputs.append(result.stdout.splitlines()[:2])
    assert outputs[0] == outputs[1]


def test_names_of_any_bytes_are_read_and_ordered_as_bytes(tmp_path):
    names = [os.fsencode(name) for name in NAMES] + [b'\xe9/old.jpg', b'z/\xff.jpg']
    write(tmp_path, *names)
    train, held_out = read(tmp_path), read(tmp_path, 'val')
    read_names = [os.fsencode(name) for name in (*train.files, *held_out.files)]
    assert sorted(read_names) == sorted(names)
    assert list(map(os.fsencode, train.files)) == sorted(map(os.fsencode, train.files))
    assert train.class_names == ['z', 'é', '\\xe9']
    for source in (train, held_out):
        '; '.join(source.reading).encode()
        assert all(source[i]['image'][:2] == b'BM' for i in range(len(source)))


def test_the_order_of_utf8_names_is_that_of_their_text(tmp_path):
    write(tmp_path, *(f'train/{name}' for name in NAMES), *(f'val/{name}' for name in NAMES))
    train = read(tmp_path)
    assert train.files == sorted(NAMES)
    digest = hashlib.sha256('\0'.join(sorted(NAMES)).encode()).hexdigest()[:16]
    assert train.identity == f'folder:{len(NAMES)}:{digest}'


def test_a_home_directory_is_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write(tmp_path, 'photos/1.jpg', 'photos/2.jpg')
    assert len(make_source('folder', 'train', path='~/photos')) == 1
