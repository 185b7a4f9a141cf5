"""Batches for detection: views of training, every image of evaluation once."""

import numpy as np
import pytest
from helpers.batches import eval_rows
from helpers.scenes import draw_scenes
from PIL import Image

from configs import detect
from mae_jax.config.data import make_source_of, make_train_loader
from mae_jax.config.detection_data import train_shapes
from mae_jax.data.transforms.boxes import eval_instances, train_instances
from mae_jax.errors import UserError

SIZE = (48, 64)
FILL = (124, 116, 104)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    draw_scenes(root, 7, 60, 0, empty_every=3)
    draw_scenes(root, 7, 60, 1, split='val2017')
    return root


def config_of(root, **fields):
    config = detect.get_config()
    config.batch_size, config.image_size = 4, SIZE
    dataset = dict(path=str(root), channels=3, scale=255.0, flip=True, max_boxes=5)
    dataset |= dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), apply_exif=False)
    config.dataset.update(dataset | {k: v for k, v in fields.items() if k in config.dataset})
    config.update({k: v for k, v in fields.items() if k not in config.dataset})
    return config


def test_training_batches_are_the_views_of_images_in_a_random_order(root):
    config = config_of(root, repeats=2)
    source = make_source_of(config, 'train')
    loader = make_train_loader(config, source, np.arange(4))
    batches = [loader.batch_at(step) for step in range(7)]  # two epochs
    expected = {'image': ((4, *SIZE, 3), np.uint8), 'label': ((4,), np.int32)}
    expected |= train_shapes(config)
    assert {name: (x.shape, x.dtype) for name, x in batches[0].items()} == expected
    assert all((batch['label'] == -1).all() for batch in batches)
    seen = []
    options = dict(image_size=SIZE, channels=3, jitter=(0.1, 2.0), max_boxes=5, flip=True)
    for epoch in range(2):
        for index in range(7):
            place = dict(seed=config.seed, epoch=epoch, index=index)
            fill = (123.675, 116.28, 103.53)
            view = train_instances(source[index], **place, **options, fill=fill, repeats=2)
            for number, batch in enumerate(batches):
                for start in (0, 2):
                    if all((batch[name][start : start + 2] == view[name]).all() for name in view):
                        seen.append((epoch, 2 * number + start // 2))
    assert len(seen) == 14  # each once in an epoch
    assert all(position // 7 == epoch for epoch, position in seen)
    assert any((batch['classes'] >= 0).any() for batch in batches)


def test_a_stream_goes_on_at_any_step_in_any_share(root):
    config = config_of(root)
    source = make_source_of(config, 'train')
    whole = make_train_loader(config, source, np.arange(4))
    share = make_train_loader(config, source, np.array([1, 3]))
    with whole.iterate(2, 2) as stream, share.iterate(2, 2) as part:
        for step, batch, rows in zip((2, 3), stream, part, strict=True):
            for name, expected in whole.batch_at(step).items():
                np.testing.assert_array_equal(batch[name], expected)
                np.testing.assert_array_equal(rows[name], expected[[1, 3]])


def test_workers_load_what_threads_load(root):
    batches = []
    for workers in (0, 1):
        config = config_of(root, workers=workers, threads=1)
        loader = make_train_loader(config, make_source_of(config, 'train'), np.arange(4))
        with loader.iterate(0, 2) as stream:
            batches.append(list(stream))
    for one, other in zip(*batches, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize('processes', [1, 2])
def test_every_image_is_evaluated_once_whole(root, processes):
    config = config_of(root)
    source = make_source_of(config, 'validation')
    rows = eval_rows(config, source, processes)
    assert len(rows) == 8
    assert sorted(row['index'] for row in rows) == [-1, *range(7)]
    for row in rows:
        assert row['valid'] == (row['index'] >= 0) and row['label'] == -1
        if not row['valid']:
            continue
        fields = dict(image_size=SIZE, channels=3, fill=FILL)
        expected = eval_instances(source[row['index']], **fields)
        for name, value in expected.items():
            np.testing.assert_array_equal(row[name], value[0])
        (height, width), (h, w) = row['original_size'], row['size']
        assert tuple(row['original_size']) == source[row['index']]['size']
        assert h == 48 or w == 64
        assert max(abs(h - height * w / width), abs(w - width * h / height)) <= 1
        assert (row['image'][h:] == FILL).all() and (row['image'][:, w:] == FILL).all()


def test_a_limit_spreads_evenly(root):
    rows = eval_rows(config_of(root), limit=3)
    assert [row['index'] for row in rows] == [0, 2, 4, -1]


def test_unreadable_images_end_the_run_or_do_not_count(tmp_path):
    draw_scenes(tmp_path, 6, 60, 0)
    draw_scenes(tmp_path, 6, 60, 1, split='val2017')
    (tmp_path / 'val2017/0002.png').write_bytes(b'no image')
    Image.new('RGB', (9, 9)).save(tmp_path / 'val2017/0004.png')
    with pytest.raises(UserError, match=r'000[24].*Repair or remove it, or set dataset\.on_error'):
        eval_rows(config_of(tmp_path))
    rows = eval_rows(config_of(tmp_path, on_error='skip', max_bad_share=0.9))
    assert sorted(row['index'] for row in rows if row['valid']) == [0, 1, 3, 5]
    assert all(row['index'] == -1 for row in rows if not row['valid'])


class Arrays:
    """A source of one's own: arrays and masks of pixels."""

    num_classes, class_names, identity = 2, ['a', 'b'], 'arrays'

    def __len__(self):
        return 5

    def __getitem__(self, index):
        mask = np.zeros((30, 30 + index), bool)
        mask[3:20, 5:25] = True
        return {
            'image': np.full((30, 30 + index, 3), index, np.uint8),
            'label': -1,
            'name': f'arrays/{index}',
            'boxes': np.array([[5, 3, 25, 20], [0, 0, 3, 3]]),
            'classes': np.array([1, 0]),
            'outlines': [mask, None],
        }


def test_a_source_of_ones_own_may_have_boxes(root):
    config = config_of(root, jitter=(1.0, 1.0))
    config.dataset.name = 'mine'
    batch = make_train_loader(config, Arrays(), np.arange(4)).batch_at(0)
    assert batch['classes'][:, :2].tolist() == [[1, 0]] * 4
    assert batch['masks'][:, :2].all()
    assert len(eval_rows(config, Arrays())) == 8


class Images(Arrays):
    """Images without boxes."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return {name: example[name] for name in ('image', 'label', 'name')}


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(jitter=(2.0, 0.1)), r'dataset.jitter=\(2.0, 0.1\) must be two positive numbers in'),
        (dict(jitter=(0.0, 1.0)), r'dataset.jitter=\(0.0, 1.0\) must be two positive numbers in'),
        (dict(max_boxes=0), 'dataset.max_boxes=0 must be at least 1'),
        (dict(augment='rand-m9-mstd0.5-inc1'), 'moves pixels, and not those of the mask'),
        (dict(num_classes=3), 'num_classes=3, but mine has 2 classes: leave it unset'),
    ],
)
def test_fields_out_of_range_are_explained(root, fields, message):
    config = config_of(root, **fields)
    config.dataset.name = 'mine'
    with pytest.raises(UserError, match=message):
        make_train_loader(config, Arrays(), np.arange(4))


def test_data_without_boxes_are_refused(root):
    config = config_of(root)
    config.dataset.name = 'mine'
    with pytest.raises(UserError, match="has no boxes: give dataset.name='coco'"):
        make_train_loader(config, Images(), np.arange(4)).batch_at(0)
