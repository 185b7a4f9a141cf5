"""Image folders as sources: classes, splits, identity, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from mae_jax.config.data import check_classes
from mae_jax.data.sources.make import make_source
from mae_jax.errors import UserError


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4), (len(name) % 256, 0, 0)).save(path)


def names(source):
    return [str(source[i]['name']) for i in range(len(source))]


def test_class_folders_give_labels_in_sorted_order(tmp_path):
    write(tmp_path, 'train/dog/b.jpg', 'train/cat/a.PNG', 'train/cat/deep/c.webp', 'val/cat/d.bmp')
    write(tmp_path, 'val/dog/e.tif', 'train/.cache/x.jpg', 'train/cat/.hidden.jpg')
    (tmp_path / 'train' / 'cat' / 'notes.txt').write_text('no image')
    np.save(tmp_path / 'train' / 'dog' / 'z.npy', np.zeros((2, 2, 3), np.uint8))
    train = make_source('folder', 'train', path=str(tmp_path))
    assert [name.split('train/')[1] for name in names(train)] == [
        'cat/a.PNG',
        'cat/deep/c.webp',
        'dog/b.jpg',
        'dog/z.npy',
    ]
    assert [train[i]['label'] for i in range(4)] == [0, 0, 1, 1]
    assert (train.num_classes, train.class_names) == (2, ['cat', 'dog'])
    assert train[0]['image'] == (tmp_path / 'train/cat/a.PNG').read_bytes()
    for split in ('validation', 'val', 'test'):  # they stand for each other
        assert len(make_source('folder', split, path=str(tmp_path))) == 2


def test_a_flat_folder_has_no_labels_and_holds_some_images_out(tmp_path):
    write(tmp_path, *(f'{i % 3}/{i:03d}.jpg' for i in range(100)), 'top.jpg')
    train = make_source('folder', 'train', path=str(tmp_path))
    held_out = make_source('folder', 'validation', path=str(tmp_path))
    assert len(train) + len(held_out) == 101
    assert 1 <= len(held_out) <= 15
    assert not set(names(train)) & set(names(held_out))
    assert train.num_classes == 0
    assert train[0]['label'] == -1
    before = set(names(held_out))
    write(tmp_path, 'one_more.jpg')
    assert before <= set(names(make_source('folder', 'validation', path=str(tmp_path))))


@pytest.mark.parametrize('count', [2, 3, 5])
def test_a_tiny_flat_folder_has_both_splits(tmp_path, count):
    write(tmp_path, *(f'{i}.jpg' for i in range(count)))
    splits = [make_source('folder', s, path=str(tmp_path)) for s in ('train', 'validation')]
    assert len(splits[0]) == count - 1
    assert len(splits[1]) == 1


def test_classes_without_an_evaluation_split_keep_their_labels(tmp_path):
    write(tmp_path, *(f'train/{c}/{i}.jpg' for c in 'ab' for i in range(30)))
    train = make_source('folder', 'train', path=str(tmp_path))
    held_out = make_source('folder', 'test', path=str(tmp_path))
    assert len(train) + len(held_out) == 60
    assert train.class_names == held_out.class_names == ['a', 'b']


def test_an_empty_class_folder_keeps_its_number_and_is_remarked_on(tmp_path):
    write(tmp_path, 'train/a/1.jpg', 'train/c/2.jpg', 'val/c/3.jpg')
    (tmp_path / 'train' / 'b').mkdir()
    train, held_out = (make_source('folder', s, path=str(tmp_path)) for s in ('train', 'val'))
    assert train.class_names == held_out.class_names == ['a', 'b', 'c']
    assert list(train.labels) == [0, 2] and list(held_out.labels) == [2]
    assert 'none of b' in train.reading


def test_identity_depends_on_the_names_of_the_files_alone(tmp_path):
    write(tmp_path / 'one', 'train/a/1.jpg', 'train/a/2.jpg', 'val/a/3.jpg')
    write(tmp_path / 'moved', 'train/a/1.jpg', 'train/a/2.jpg', 'val/a/3.jpg')
    write(tmp_path / 'other', 'train/a/1.jpg', 'train/a/2x.jpg', 'val/a/3.jpg')

    def identity(name):
        return make_source('folder', 'train', path=str(tmp_path / name)).identity

    assert identity('one') == identity('moved') != identity('other')


def test_class_folders_that_differ_are_shown_to_tasks_that_need_labels(tmp_path):
    write(tmp_path, 'train/cat/a.jpg', 'train/dog/b.jpg', 'val/cat/c.jpg', 'val/fox/d.jpg')
    sources = [make_source('folder', split, path=str(tmp_path)) for split in ('train', 'val')]
    with pytest.raises(UserError, match=r'only in training: dog; only in evaluation: fox'):
        check_classes(*sources)
    write(tmp_path / 'flat', 'train/cat/a.jpg', 'val/c.jpg')
    sources = [make_source('folder', s, path=str(tmp_path / 'flat')) for s in ('train', 'val')]
    with pytest.raises(UserError, match=r'eval_split has no labels'):
        check_classes(*sources)


@pytest.mark.parametrize(
    ('files', 'split', 'message'),
    [
        (['notes.txt'], 'train', 'has no image'),
        (['train/a/notes.txt', 'val/a/x.jpg'], 'train', 'train has no image in it'),
        (['train/loose.jpg', 'train/a/x.jpg', 'val/a/x.jpg'], 'train', r'loose\.jpg.*beside'),
        (['train/a/x.jpg', 'val/a/x.jpg'], 'tiny', "no split 'tiny'; it has train, val"),
        (['val/a/x.jpg'], 'train', 'has val/ but no train/'),
        (['only.jpg'], 'train', 'one image only'),
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(tmp_path, files, split, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    with pytest.raises(UserError, match=message):
        make_source('folder', split, path=str(tmp_path))


def test_a_path_that_is_unset_or_missing_is_refused():
    with pytest.raises(UserError, match=r'needs dataset\.path'):
        make_source('folder', 'train')
    with pytest.raises(UserError, match='not a folder'):
        make_source('folder', 'train', path='/no/such/folder')
