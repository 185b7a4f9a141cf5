"""What a folder is taken for, and which of its folders are missing or short."""

import shutil

import numpy as np
import pytest
from helpers.robustness import SETS, write_images
from ml_collections import ConfigDict

from configs import robustness
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.errors import UserError
from mae_jax.evaluation.robustness import imagenet_wnids
from mae_jax.evaluation.robustness_sets import (
    KINDS,
    classes_alone,
    find_kind,
    open_imagenet_c,
    open_sets,
)


@pytest.fixture(scope='module')
def corrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp('sets') / 'c'
    for name in SETS:
        write_images(root / name, ('n1', 'n2'), 2)
    return root


def opened(root):
    return open_imagenet_c(ConfigDict({'name': 'folder', 'path': str(root)}))


def test_recipe_and_package_have_the_same_kinds():
    assert tuple(KINDS) == robustness.KINDS
    for kind in KINDS:
        assert robustness.get_config(kind).robustness.kind == kind


def test_all_corruptions_and_severities_are_opened(corrupted):
    sets = opened(corrupted)
    assert list(sets) == SETS and len(sets) == 75
    for name, source in sets.items():
        assert len(source) == 4 and source.class_names == ['n1', 'n2']
        assert source[3]['name'] == str(corrupted / name / 'n2' / '1.png')
        assert source[3]['image'] == (corrupted / name / 'n2' / '1.png').read_bytes()


def test_archives_may_have_been_extracted_to_their_groups(corrupted, tmp_path):
    shutil.copytree(corrupted, tmp_path / 'c')
    (tmp_path / 'c/weather').mkdir()
    (tmp_path / 'c/snow').rename(tmp_path / 'c/weather/snow')
    assert opened(tmp_path / 'c')['snow/3'].root == str(tmp_path / 'c/weather/snow/3')


def remove(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (remove('snow'), r'c has no snow: it needs <corruption>/<severity>/<class>/'),
        (remove('fog/2', 'frost'), r'c has no frost, fog/2:'),
        (remove('fog/2/n1'), r'incomplete: fog/2 \(2 images of 1 class\).*4 images of 2 classes'),
        (lambda root: (root / 'fog/2/n1/0.png').unlink(), r'fog/2 \(3 images of 2 classes\)'),
        (
            lambda root: (root / 'fog/2/n1').rename(root / 'fog/2/n0'),
            r'incomplete: fog/2 .*differs',
        ),
        (remove('fog/2/n1', 'fog/2/n2'), r'fog/2 has no image in it'),
    ],
)
def test_a_missing_or_short_folder_is_named(corrupted, tmp_path, damage, message):
    shutil.copytree(corrupted, tmp_path / 'c')
    damage(tmp_path / 'c')
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / 'c')
    assert '\n' not in str(caught.value)


def make_folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_a_folder_is_taken_for_what_lies_in_it(corrupted, tmp_path):
    wnids = imagenet_wnids()
    goldfish, robin = wnids.index('n01443537'), wnids.index('n01558993')
    assert find_kind(str(corrupted)) == 'imagenet_c'
    a = make_folders(tmp_path / 'a', wnids[robin : robin + 200])
    assert find_kind(str(a)) == 'imagenet_a'
    r = make_folders(tmp_path / 'r', wnids[goldfish : goldfish + 200])
    assert find_kind(str(r)) == 'imagenet_r'
    for number in range(2):
        all_of_it = make_folders(tmp_path / f'all_{number}', wnids)
        (all_of_it / wnids[0] / ('ILSVRC2012_val_1.JPEG', 'sketch_1.png')[number]).touch()
        assert find_kind(str(all_of_it)) == ('corruptions', 'imagenet_sketch')[number]
    assert find_kind(str(make_folders(tmp_path / 'mine', ('cat', 'dog')))) == 'corruptions'
    assert find_kind(str(tmp_path / 'nowhere')) == 'corruptions'


def test_an_argmax_is_over_the_classes_that_occur_where_a_kind_says_so():
    kind = KINDS['imagenet_a']
    labels = np.arange(0, 1000, 5)
    source = ArraySource(np.zeros((200, 2, 2, 3), np.uint8), labels, [str(i) for i in range(1000)])
    assert classes_alone(source, kind, 'a') == labels.tolist()
    assert classes_alone(source, KINDS['corruptions'], 'a') is None
    with pytest.raises(
        UserError, match='a has images of 200 classes, and ImageNet-Sketch of 1,000'
    ):
        classes_alone(source, KINDS['imagenet_sketch'], 'a')


@pytest.mark.parametrize(
    ('kind', 'fields', 'message'),
    [
        ('imagenet_c', {}, r'ImageNet-C is read from folders, and dataset\.path=None is none'),
        ('imagenet_a', {'dataset.path': '/nowhere'}, r"dataset\.path='/nowhere' is not a folder"),
        ('imagenet_a', {'robustness.kind': 'imagenet_b'}, r"kind='imagenet_b' is unknown"),
        ('imagenet_a', {'dataset.path': 'flat'}, r'the images of \S*flat have no labels'),
        ('corruptions', {'dataset.path': 'flat'}, r'the images of \S*flat have no labels'),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(tmp_path, monkeypatch, kind, fields, message):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, ('flat',), 2)
    config = robustness.get_config(kind)
    config.image_size = (8, 8)
    config.update_from_flattened_dict({'dataset.name': 'folder', 'dataset.channels': 3} | fields)
    with pytest.raises(UserError, match=message):
        open_sets(config)


@pytest.mark.parametrize('fields', [{'channels': 4}, {'scale': 65535.0}, {'bands': (0, 1, 2)}])
def test_only_8_bit_images_can_be_corrupted(fields):
    config = robustness.get_config()
    config.image_size = (8, 8)
    config.dataset.update({'channels': 3, 'scale': 255.0} | fields)
    source = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), [0, 1])
    with pytest.raises(UserError, match='corruptions are defined for 8-bit images'):
        open_sets(config, source)
