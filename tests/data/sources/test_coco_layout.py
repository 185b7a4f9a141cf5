"""Where annotations and their images lie: COCO's own layout, and those of labelling tools."""

import json
import re

import pytest
from helpers.coco import annotated, dataset, write_coco

from mae_jax.data.sources.make import make_source
from mae_jax.data.sources.splits import NoSplit
from mae_jax.errors import UserError


def open_coco(root, split='train', annotations=None, held_out_share=None):
    return make_source(
        'coco',
        split,
        path=str(root),
        held_out_share=held_out_share,
        instances={'annotations': annotations},
    )


def write(root, file, folder, images=2):
    write_coco(root, dataset(images, [annotated(5)]), file, folder)


def places(source, root):
    return {source[i]['name'].removeprefix(f'{root}/') for i in range(len(source))}


@pytest.mark.parametrize(
    ('files', 'folders'),
    [
        (
            ('annotations/instances_train2017.json', 'annotations/instances_val2017.json'),
            ('train2017', 'val2017'),
        ),
        (
            ('annotations/instances_train2017.json', 'annotations/instances_val2017.json'),
            ('images/train2017', 'images/val2017'),
        ),
        (('annotations/instances_train.json', 'annotations/instances_test.json'), ('images', '')),
        (('train/_annotations.coco.json', 'valid/_annotations.coco.json'), ('train', 'valid')),
    ],
)
def test_each_split_has_its_file_and_its_images(tmp_path, files, folders):
    for number, (file, folder) in enumerate(zip(files, folders, strict=True), 2):
        write(tmp_path, file, folder, images=number)
    (tmp_path / 'annotations').mkdir(exist_ok=True)
    (tmp_path / 'annotations/captions_train2017.json').write_text('{}')
    for number, (split, folder) in enumerate(zip(('train', 'validation'), folders, strict=True), 2):
        source = open_coco(tmp_path, split)
        assert places(source, tmp_path) == {f'{folder}/{i}.png'.strip('/') for i in range(number)}


@pytest.mark.parametrize(
    ('file', 'folder', 'annotations'),
    [
        ('result.json', '', None),
        ('result.json', 'images', None),
        ('annotations/instances_default.json', 'images/default', None),
        ('labels.json', 'images', 'labels.json'),
        ('exports/labels.json', '', 'exports/labels.json'),
        ('exports/labels.json', 'exports', 'exports/labels.json'),
        ('annotations/instances_train.json', 'train', None),
    ],
)
def test_of_one_file_some_images_are_held_out(tmp_path, file, folder, annotations):
    write(tmp_path, file, folder, images=40)
    if annotations:
        (tmp_path / 'other.json').write_text('{}')
    train, held_out = (open_coco(tmp_path, each, annotations) for each in ('train', 'val'))
    one, other = places(train, tmp_path), places(held_out, tmp_path)
    assert one | other == {f'{folder}/{i}.png'.strip('/') for i in range(40)} and not one & other
    assert len(open_coco(tmp_path, 'val', annotations, held_out_share=0.5)) > len(held_out) > 0
    assert train.reading[0].startswith(f'40 images, {len(held_out)} held out in {file}, 2 classes')
    assert held_out.reading == ()


def test_a_file_may_be_named_by_its_split(tmp_path):
    write(tmp_path, 'labels/train_v2.json', 'images/train_v2')
    write(tmp_path, 'labels/val_v2.json', 'images/val_v2', images=3)
    named = 'labels/{split}_v2.json'
    assert places(open_coco(tmp_path, 'train', named), tmp_path) == {
        'images/train_v2/0.png',
        'images/train_v2/1.png',
    }
    assert len(open_coco(tmp_path, 'validation', named)) == 3
    (tmp_path / 'labels/val_v2.json').unlink()
    assert len(open_coco(tmp_path, 'validation', named)) == 1  # held out of train
    with pytest.raises(UserError, match=r"annotations='x_\{split\}.json' is no file in .* train"):
        open_coco(tmp_path, 'train', 'x_{split}.json')
    with pytest.raises(UserError, match=r"annotations='x.json' is no file in"):
        open_coco(tmp_path, 'train', 'x.json')


def test_a_file_of_annotations_may_lie_elsewhere(tmp_path):
    write(tmp_path, 'labels.json', 'photos')
    source = open_coco(tmp_path / 'photos', 'train', str(tmp_path / 'labels.json'), 0.5)
    assert places(source, tmp_path) < {'photos/0.png', 'photos/1.png'}


def test_of_several_files_for_a_split_one_is_named(tmp_path):
    for year in (2014, 2017):
        write(tmp_path, f'annotations/instances_train{year}.json', f'train{year}', year - 2012)
    with pytest.raises(UserError, match=r'instances_train2014.json, .*2017.json for train: name'):
        open_coco(tmp_path)
    assert len(open_coco(tmp_path, 'train2014')) == 2
    write(tmp_path, 'annotations/instances_train.json', 'train', 3)
    assert len(open_coco(tmp_path)) < 3


def test_training_may_be_missing_where_a_model_is_evaluated(tmp_path):
    write(tmp_path, 'annotations/instances_val2017.json', 'val2017')
    assert len(open_coco(tmp_path, 'validation')) == 2
    with pytest.raises(NoSplit, match=r'has annotations/instances_val2017.json and none for tra'):
        open_coco(tmp_path)
    with pytest.raises(NoSplit, match="no annotations of a split 'tiny'; it has annotations/inst"):
        open_coco(tmp_path, 'tiny')


def test_files_among_which_none_stands_out_are_named(tmp_path):
    for name in ('a.json', 'b.json'):
        write(tmp_path, name, 'images')
    with pytest.raises(UserError, match=r'name the file by dataset.annotations \(it has a.json, b'):
        open_coco(tmp_path)
    with pytest.raises(UserError, match=r'it has no file'):
        open_coco(tmp_path / 'images')


def test_images_that_are_not_there_are_counted(tmp_path):
    file = 'annotations/instances_train2017.json'
    write(tmp_path, file, 'train2017', images=4)
    for number in (2, 3):
        (tmp_path / f'train2017/{number}.png').unlink()
    folder = re.escape(str(tmp_path / 'train2017'))
    message = f'{file} lists 2.png, which is not in {folder}, one of 2 such among 4 images: '
    with pytest.raises(UserError, match=message):
        open_coco(tmp_path)
    (tmp_path / 'train2017').rename(tmp_path / 'photos')
    with pytest.raises(UserError, match=f'0.png, which is not in {tmp_path} nor in {tmp_path}/ann'):
        open_coco(tmp_path)


@pytest.mark.parametrize('name', ['../x.png', '/etc/passwd', 'a/../../x.png', '..\\x.png', ''])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    file = 'annotations/instances_train2017.json'
    write(tmp_path, file, 'train2017')
    content = json.loads((tmp_path / file).read_text())
    content['images'][1]['file_name'] = name
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f'{file} has an image .*, which must be a path in the fol'):
        open_coco(tmp_path)


@pytest.mark.parametrize(
    ('path', 'message'),
    [(None, 'needs dataset.path'), ('gs://a/b', 'not a folder on a disk'), ('/nowhere', 'is not')],
)
def test_a_path_that_is_no_folder_is_refused(path, message):
    with pytest.raises(UserError, match=message):
        make_source('coco', 'train', path=path)
