"""Batches of pairs: training crops, and whole images of evaluation on canvases."""

import functools

import numpy as np
import pytest
from helpers.batches import eval_rows
from helpers.pairs import VIEWS, blocks, write_pairs
from PIL import Image

from configs import segment
from mae_jax.config.data import (
    make_augment,
    make_source_of,
    make_train_loader,
)
from mae_jax.data.images.masks import MaskValues
from mae_jax.data.loader.batches import loader_of
from mae_jax.data.transforms.pairs import eval_pair, train_pairs
from mae_jax.errors import UserError

SIZES = [(60, 40), (40, 60), (48, 48), (100, 40), (61, 40), (40, 40), (200, 50)]
FILL = (124, 116, 104)


@pytest.fixture
def root(tmp_path):
    write_pairs(tmp_path, 'train', SIZES)
    write_pairs(tmp_path, 'val', SIZES, first=10)
    return tmp_path


def config_of(root, **fields):
    config = segment.get_config()
    config.batch_size, config.image_size, config.num_classes = 4, (32, 32), 5
    dataset = dict(path=str(root), channels=3, scale=255.0, flip=True)
    dataset |= dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    config.dataset.update(dataset | {k: v for k, v in fields.items() if k in config.dataset})
    config.update({k: v for k, v in fields.items() if k not in config.dataset})
    return config


def test_training_batches_are_the_views_of_pairs(root):
    config = config_of(root, repeats=2)
    source = make_source_of(config, 'train')
    loader = make_train_loader(config, source, np.arange(4))
    batch = loader.batch_at(3)
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        'image': ((4, 32, 32, 3), 'uint8'),
        'mask': ((4, 32, 32), 'uint8'),
        'label': ((4,), 'int32'),
    }
    assert (batch['label'] == -1).all()
    found = 0
    for index in range(len(source)):
        for epoch in range(3):
            view = train_pairs(
                source[index],
                seed=config.seed,
                epoch=epoch,
                index=index,
                image_size=(32, 32),
                augment=make_augment(config),
                repeats=2,
                **VIEWS,
            )
            for start in (0, 2):
                same = (batch['image'][start : start + 2] == view['image']).all()
                found += same and (batch['mask'][start : start + 2] == view['mask']).all()
    assert found == 2
    with loader.iterate(3, 1) as batches:
        streamed = next(batches)
    for name in batch:
        np.testing.assert_array_equal(streamed[name], batch[name])


def test_the_share_of_a_process_is_its_rows_of_the_global_batch(root):
    config = config_of(root)
    source = make_source_of(config, 'train')
    whole = make_train_loader(config, source, np.arange(4)).batch_at(2)
    share = make_train_loader(config, source, np.array([1, 3])).batch_at(2)
    for name in whole:
        np.testing.assert_array_equal(share[name], whole[name][[1, 3]])


@pytest.mark.parametrize('processes', [1, 2])
def test_every_pair_is_evaluated_once_whole(root, processes):
    rows = eval_rows(config_of(root), processes=processes)
    seen = []
    for row in rows:
        if not row['valid']:
            continue
        (height, width), (h, w) = row['size'], row['mask_size']
        number = SIZES.index((w, h))
        seen.append(number)
        np.testing.assert_array_equal(row['mask'][:h, :w], blocks(10 + number, w, h))
        assert (row['mask'][h:] == 255).all() and (row['mask'][:, w:] == 255).all()
        path = root / f'images/val/{10 + number:03d}.jpg'
        picture = Image.open(path).resize((int(width), int(height)), Image.BILINEAR)
        np.testing.assert_array_equal(row['image'][:height, :width], np.asarray(picture))
        assert (row['image'][height:] == FILL).all() and (row['image'][:, width:] == FILL).all()
        assert min(height, width) == 32 and max(height, width) == round(32 * max(w, h) / min(w, h))
        assert row['label'] == -1
    assert sorted(seen) == list(range(len(SIZES)))


def test_canvases_are_filled_by_windows(root):
    config = config_of(root, stride=10)
    for row in eval_rows(config):
        assert all(side >= 32 and (side - 32) % 10 == 0 for side in row['image'].shape[:2])
        assert all(a <= b for a, b in zip(row['size'], row['image'].shape, strict=False))


def test_short_and_long_side_are_limits(root):
    rows = eval_rows(config_of(root, short_side=40, long_side=100))
    sizes = {tuple(row['mask_size'][::-1]): tuple(row['size']) for row in rows if row['valid']}
    assert sizes[60, 40] == (40, 60) and sizes[200, 50] == (25, 100) and sizes[40, 60] == (60, 40)


def test_a_whole_image_is_squeezed_to_the_size_of_the_model(root):
    rows = eval_rows(config_of(root, inference='whole'))
    assert all(row['image'].shape == (32, 32, 3) for row in rows)
    assert all(tuple(row['size']) == (32, 32) for row in rows if row['valid'])
    assert sum(row['valid'] for row in rows) == len(SIZES)


def test_a_limit_spreads_evenly(root):
    rows = eval_rows(config_of(root), limit=3)
    sizes = sorted(tuple(row['mask_size'][::-1]) for row in rows if row['valid'])
    assert sizes == sorted(SIZES[i] for i in (0, 2, 4))


def test_workers_load_what_threads_load(root):
    config = config_of(root)
    source = make_source_of(config, 'train')
    options = VIEWS | dict(fill=FILL)
    transform = functools.partial(train_pairs, image_size=(16, 16), **options)
    batches = []
    for workers in (0, 1):
        loader = loader_of(
            source, transform, batch_size=4, rows=range(4), seed=1, workers=workers, threads=1
        )
        with loader.iterate(0, 2) as stream:
            batches.append(list(stream))
    for one, other in zip(*batches, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_unreadable_pairs_end_the_run_or_do_not_count(root):
    (root / 'images/val/012.jpg').write_bytes(b'no image')
    Image.new('L', (3, 3)).save(root / 'annotations/val/014.png')
    config = config_of(root)
    with pytest.raises(UserError, match=r'01[24].*Repair or remove it, or set dataset\.on_error'):
        eval_rows(config)
    rows = eval_rows(config_of(root, on_error='skip', max_bad_share=0.9))
    seen = sorted(SIZES.index(tuple(row['mask_size'][::-1])) for row in rows if row['valid'])
    assert seen == [0, 1, 3, 5, 6]


def test_a_mask_that_vanishes_is_named_or_left_out(root):
    source = make_source_of(config_of(root), 'validation')
    (root / 'annotations/val/012.png').unlink()
    with pytest.raises(UserError, match=r'012\.png cannot be read: No such file'):
        eval_rows(config_of(root), source)
    skipping = config_of(root, on_error='skip')
    assert sum(row['valid'] for row in eval_rows(skipping, source)) == len(SIZES) - 1
    with pytest.raises(UserError, match=r'1 of 7 images were unreadable, more than .*max_bad'):
        eval_rows(config_of(root, on_error='skip', max_bad_share=0.0), source)


class Arrays:
    """A source of one's own: arrays, and no sizes of masks."""

    num_classes, class_names, identity = 5, list('abcde'), 'arrays'

    def __len__(self):
        return 5

    def __getitem__(self, index):
        image = np.full((20 + index, 30, 3), index, np.uint8)
        mask = blocks(index, 30, 20 + index)
        return {'image': image, 'mask': mask, 'label': -1, 'name': f'arrays/{index}'}


def test_a_source_of_ones_own_may_have_masks(root):
    config = config_of(root)
    config.dataset.name = 'mine'
    rows = [row for row in eval_rows(config, Arrays()) if row['valid']]
    assert sorted(tuple(row['mask_size']) for row in rows) == [(20 + i, 30) for i in range(5)]
    assert make_train_loader(config, Arrays(), np.arange(4)).batch_at(0)['mask'].max() > 0


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(inference='some'), "inference='some' must be slide or whole"),
        (dict(stride=33), 'stride=33 must be from 1 to 32'),
        (dict(short_side=50, long_side=40), 'short_side=50 must be positive and at most'),
        (dict(resize_ratio=(2.0, 0.5)), r'resize_ratio=\(2.0, 0.5\) must be two positive'),
        (dict(max_class_share=1.5), 'max_class_share=1.5 must be above 0'),
        (dict(augment='rand-m9-mstd0.5-inc1'), 'moves pixels, and not those of the mask'),
        (dict(augment='blur'), "or be 'photometric', or '' for none"),
        (dict(num_classes=6), 'num_classes=6, but mine has 5 classes'),
    ],
)
def test_fields_out_of_range_are_explained(root, fields, message):
    config = config_of(root, **fields)
    config.dataset.name = 'mine'
    with pytest.raises(UserError, match=message):
        make_train_loader(config, Arrays(), np.arange(4))
        eval_rows(config, Arrays())


def test_a_row_of_evaluation_is_what_the_transform_makes(root):
    """Guards the oracle above: the transform is the one that is tested in transforms/."""
    source = make_source_of(config_of(root), 'validation')
    row = next(r for r in eval_rows(config_of(root)) if tuple(r['mask_size'][::-1]) == (100, 40))
    canvases = dict(canvas=row['image'].shape[:2], mask_canvas=row['mask'].shape)
    fields = dict(channels=3, values=MaskValues(5), fill=FILL)
    expected = eval_pair(source[3], size=(32, 80), **canvases, **fields)
    np.testing.assert_array_equal(row['image'], expected['image'][0])
