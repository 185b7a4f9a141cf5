"""Digits, arrays and synthetic images as sources."""

import pickle

import numpy as np
import pytest
from PIL import Image

from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.sources.make import make_source
from mae_jax.errors import UserError


def test_digits_are_split_in_two_without_overlap():
    train, held_out = (make_source('digits', split) for split in ('train', 'validation'))
    assert (len(train), len(held_out)) == (1437, 360)
    record = train[0]
    assert record['image'].shape == (8, 8, 1)
    assert record['image'].dtype == np.uint8
    from sklearn.datasets import load_digits

    ours = [s[i]['image'].tobytes() for s in (train, held_out) for i in range(len(s))]
    theirs = [
        np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images
    ]
    assert sorted(ours) == sorted(theirs)
    labels = np.bincount([held_out[i]['label'] for i in range(len(held_out))])
    assert labels.min() > 20  # every class is in both
    with pytest.raises(UserError, match="no split 'tset'"):
        make_source('digits', 'tset')


def test_arrays_in_memory_are_a_source():
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    source = ArraySource(features, np.array([0, 1, 1, 0]), ['no', 'yes'])
    assert (len(source), source.num_classes, source.class_names) == (4, 2, ['no', 'yes'])
    np.testing.assert_array_equal(source[2]['image'], features[2])
    assert source[2]['image'].dtype == np.float32
    assert source[2]['label'] == 1
    others = [
        ArraySource(features + 1, source.labels, ['no', 'yes']),
        ArraySource(features, 1 - source.labels, ['no', 'yes']),
        ArraySource(features[::-1], source.labels, ['no', 'yes']),
        ArraySource(features[:3], source.labels[:3], ['no', 'yes']),
    ]
    assert len({source.identity, *(other.identity for other in others)}) == 5
    assert source.identity == ArraySource(features.copy(), source.labels, ['no', 'yes']).identity
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity


def test_identity_of_synthetic_images_depends_on_their_number():
    a, b = (
        make_source('synthetic', 'train', synthetic_examples=n, image_size=(8, 8)) for n in (5, 6)
    )
    assert a.identity != b.identity


def test_synthetic_images_depend_on_the_index_alone():
    source = make_source('synthetic', 'train', image_size=(20, 40), channels=5)
    assert len(source) == 1_281_167
    record = source[1_281_166]
    assert record['image'].shape == (20, 40, 5)
    assert record['label'] == 166
    np.testing.assert_array_equal(source[7]['image'], source[7]['image'])
    assert (source[7]['image'] != source[8]['image']).any()


def test_sources_can_be_pickled(tmp_path):
    for split in ('train', 'val'):
        (tmp_path / split / 'a').mkdir(parents=True)
        Image.new('RGB', (4, 4)).save(tmp_path / split / 'a' / '1.jpg')
    for source in (
        make_source('digits', 'train'),
        make_source('synthetic', 'train'),
        make_source('folder', 'train', path=str(tmp_path)),
    ):
        copy = pickle.loads(pickle.dumps(source))
        assert copy.identity == source.identity
        np.testing.assert_array_equal(copy[0]['image'], source[0]['image'])
