"""Order, batches, repeats, replaced images and evaluation of the loader, in threads."""

import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mae_jax.data.loader.batches import eval_batches, make_loader
from mae_jax.data.loader.order import epochs
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.sources.make import make_source
from mae_jax.data.transforms.randaugment import RandAugment
from mae_jax.errors import UserError
from mae_jax.tasks.preprocess import crop_and_resize

PHOTO = {'image_size': (16, 16), 'seed': 0}


class Numbered:
    """A source in memory, with labels and pixels that are the index of the example."""

    def __init__(self, count, bad=()):
        self.count, self.bad = count, set(bad)
        self.num_classes, self.class_names, self.identity = 0, [], 'numbered'

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        broken = b'broken' if index in self.bad else np.full((4, 4, 1), index, np.float32)
        return {'image': broken, 'label': index, 'name': f'numbered/{index}'}


def numbered_loader(count, batch_size, rows=None, seed=0, bad=(), **options):
    rows = range(batch_size) if rows is None else rows
    return make_loader(
        Numbered(count, bad),
        batch_size=batch_size,
        rows=rows,
        seed=seed,
        image_size=(4, 4),
        channels=1,
        **options,
    )


def labels(loader, steps):
    return np.concatenate([loader.batch_at(step)['label'] for step in range(steps)])


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key, value in batch.items():
        np.testing.assert_array_equal(value, other[key])
        assert value.dtype == other[key].dtype


@pytest.mark.parametrize('processes', [1, 3])
@pytest.mark.parametrize(('count', 'batch_size'), [(12, 6), (25, 6), (100, 12), (5, 12)])
def test_every_example_comes_once_an_epoch(processes, count, batch_size):
    num_epochs = 2
    shares = np.split(np.arange(batch_size), processes)
    loaders = [numbered_loader(count, batch_size, rows) for rows in shares]
    steps = -(-num_epochs * count // batch_size)
    stream = np.concatenate(
        [loader.batch_at(step)['label'] for step in range(steps) for loader in loaders]
    )
    for epoch in range(num_epochs):
        seen = stream[epoch * count : (epoch + 1) * count]
        np.testing.assert_array_equal(np.sort(seen), np.arange(count))


@pytest.mark.parametrize(('processes', 'interleaved'), [(2, True), (4, False)])
def test_the_global_batch_does_not_depend_on_the_process_count(
    photo_folder, processes, interleaved
):
    source = make_source('folder', 'train', path=str(photo_folder(30)))
    rows = np.arange(8)
    shares = [rows[p::processes] for p in range(processes)]
    if not interleaved:
        shares = np.split(rows, processes)
    whole = make_loader(source, batch_size=8, rows=rows, **PHOTO)
    loaders = [make_loader(source, batch_size=8, rows=share, **PHOTO) for share in shares]
    with whole.iterate(0, 6) as expected:
        streams = [loader.iterate(0, 6) for loader in loaders]
        for batch, *local_batches in zip(expected, *streams, strict=True):
            for share, local in zip(shares, local_batches, strict=True):
                assert_same(local, {key: value[share] for key, value in batch.items()})


def test_a_stream_starts_at_a_late_step_at_once():
    loader = numbered_loader(1_281_167, 8)
    start = time.monotonic()
    with loader.iterate(10_000_000) as batches:
        assert_same(next(batches), loader.batch_at(10_000_000))
    assert time.monotonic() - start < 2


def test_a_resumed_stream_is_the_tail_of_the_straight_one(photo_folder):
    source = make_source('folder', 'train', path=str(photo_folder(20)))
    straight = list(make_loader(source, batch_size=6, rows=range(6), **PHOTO).iterate(0, 9))
    for start in (1, 8):
        loader = make_loader(source, batch_size=6, rows=range(6), **PHOTO)
        resumed = list(loader.iterate(start, 9 - start))
        assert len(resumed) == 9 - start
        for batch, other in zip(resumed, straight[start:], strict=True):
            assert_same(batch, other)


def test_the_stream_is_the_batches_of_its_steps(photo_folder):
    source = make_source('folder', 'train', path=str(photo_folder(20)))
    loader = make_loader(source, batch_size=10, rows=range(10), threads=3, prefetch=1, **PHOTO)
    with loader.iterate(3, 5) as batches:
        for step, batch in enumerate(batches, start=3):
            assert batch['image'].shape == (10, 16, 16, 3)
            assert batch['image'].dtype == np.uint8
            assert batch['label'].dtype == np.int32
            assert type(batch['image']) is np.ndarray
            assert_same(batch, loader.batch_at(step))
    assert step == 7


def test_no_two_crops_of_an_image_are_the_same(photo_folder):
    source = make_source('folder', 'train', path=str(photo_folder(8)))
    loader = make_loader(source, batch_size=8, rows=range(8), **PHOTO)
    images = np.concatenate([loader.batch_at(step)['image'] for step in range(4)])
    assert len(np.unique(images.reshape(32, -1), axis=0)) == 32  # in more than four epochs


def test_crop_and_augment_change_the_images(photo_folder):
    source = make_source('folder', 'train', path=str(photo_folder(10)))
    options = {'batch_size': 9, 'rows': range(9), **PHOTO}
    plain = make_loader(source, **options).batch_at(0)['image']
    clamp = make_loader(source, **options, crop='clamp').batch_at(0)['image']
    augment = RandAugment((0, 0, 0), probability=1)
    augmented = make_loader(source, **options, augment=augment).batch_at(0)['image']
    assert (clamp != plain).any() and (augmented != plain).any()


@pytest.mark.parametrize('resize', ['host', 'device'])
def test_a_repeated_image_gives_rows_one_after_another_and_comes_once_an_epoch(resize):
    loader = numbered_loader(12, 6, repeats=3, resize=resize, canvas=4)
    seen = labels(loader, 12).reshape(24, 3)  # two epochs of images, in twelve steps of two
    assert (seen == seen[:, :1]).all()
    for epoch in np.split(seen[:, 0], 2):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(12))


def test_views_of_a_repeated_image_differ_and_the_first_is_that_without_repeats(photo_folder):
    source = make_source('folder', 'train', path=str(photo_folder(12)))
    once = make_loader(source, batch_size=2, rows=range(2), **PHOTO)
    thrice = make_loader(source, batch_size=6, rows=range(6), repeats=3, **PHOTO)
    for step in range(4):
        views = thrice.batch_at(step)['image'].reshape(2, 3, 16, 16, 3)
        np.testing.assert_array_equal(views[:, 0], once.batch_at(step)['image'])
        assert len(np.unique(views.reshape(6, -1), axis=0)) == 6


@pytest.mark.parametrize('resize', ['host', 'device'])
def test_repeated_images_are_shared_among_processes_as_wholes(photo_folder, resize):
    source = make_source('folder', 'train', path=str(photo_folder(12)))
    options = {'batch_size': 8, 'repeats': 2, 'resize': resize, 'canvas': 64, **PHOTO}
    whole = make_loader(source, rows=range(8), **options)
    loaders = [make_loader(source, rows=rows, **options) for rows in np.split(np.arange(8), 2)]
    with whole.iterate(3, 2) as batches:
        for step, batch in enumerate(batches, start=3):
            local_batches = [loader.batch_at(step) for loader in loaders]
            joined = {name: np.concatenate([b[name] for b in local_batches]) for name in batch}
            assert_same(batch, joined)
    with pytest.raises(UserError, match=r'dataset\.repeats=2 rows of an image'):
        make_loader(source, rows=range(1, 5), **options)


def test_crops_on_the_device_are_those_of_the_host(photo_folder):
    source = make_source('folder', 'train', path=str(photo_folder(12)))
    options = {'batch_size': 8, 'rows': range(8), 'repeats': 2, **PHOTO}
    expected = make_loader(source, **options).batch_at(2)
    batch = make_loader(source, resize='device', canvas=64, **options).batch_at(2)
    boxed = batch['canvas'], batch['box']
    assert batch['canvas'].shape == (4, 64, 64, 3) and batch['box'].shape == (8, 5)
    ours = np.asarray(jax.jit(crop_and_resize, static_argnums=2)(*boxed, (16, 16)))
    assert np.abs(ours - expected['image']).max() <= 1
    np.testing.assert_array_equal(batch['label'], expected['label'])


def test_an_image_larger_than_the_canvas_is_reduced_to_fit():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    source = ArraySource(pixels[None], np.zeros(1, int), ['one'])
    options = {'batch_size': 1, 'rows': [0], 'resize': 'device', 'canvas': 30, **PHOTO}
    batch = make_loader(source, crop_scale=(1, 1), crop_ratio=(1.5, 1.5), flip=False, **options)
    canvas, box = (batch.batch_at(0)[name][0] for name in ('canvas', 'box'))
    expected = Image.fromarray(pixels).resize((30, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(canvas[:20], np.asarray(expected))
    assert not canvas[20:].any()
    assert box.tolist() == [0, 0, 30, 20, 0]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'repeats': 4}, r'dataset\.repeats=4 does not divide batch_size=6'),
        ({'repeats': 0}, r'dataset\.repeats=0'),
        ({'resize': 'gpu'}, r"dataset\.resize='gpu'"),
        ({'resize': 'device', 'crop': 'fixed'}, r'dataset\.crop=retry or clamp'),
        ({'resize': 'device', 'augment': RandAugment((9,))}, r'dataset\.augment'),
        ({'resize': 'device', 'canvas': 0}, r'dataset\.canvas=0'),
    ],
)
def test_repeats_and_resize_that_cannot_work_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        numbered_loader(12, 6, **fields)


def test_evaluation_sees_every_example_once(photo_folder):
    source = Numbered(23)
    batches = list(
        eval_batches(source, batch_size=10, rows=range(10), image_size=(4, 4), channels=1)
    )
    assert [batch['label'].shape for batch in batches] == [(10,)] * 3
    valid = np.concatenate([batch['valid'] for batch in batches])
    seen = np.concatenate([batch['label'] for batch in batches])
    assert valid.dtype == bool
    np.testing.assert_array_equal(seen[valid], np.arange(23))
    np.testing.assert_array_equal(seen[~valid], [-1] * 7)
    assert not valid[23:].any()


def test_evaluation_is_shared_among_processes_and_limited():
    seen = []
    for rows in ([0, 1], [2, 3]):
        batches = list(
            eval_batches(
                Numbered(90), batch_size=4, rows=rows, image_size=(4, 4), channels=1, limit=9
            )
        )
        assert len(batches) == 3
        seen += [batch['label'][batch['valid']] for batch in batches]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(0, 90, 10))


def test_an_unreadable_image_is_replaced_by_the_next_one_and_counted():
    whole, skipping = (
        numbered_loader(200, 20, on_error='skip', bad=bad, max_bad_share=0.1)
        for bad in ((), (3, 70, 71, 199))
    )
    with skipping.iterate(0, 10) as batches:
        stream = np.concatenate([next(batches)['label'] for _ in range(5)])
        after_five = skipping.num_replaced
        stream = np.concatenate([stream, *(batch['label'] for batch in batches)])
    expected = labels(whole, 10)
    assert after_five == np.isin(expected[:100], [3, 70, 71, 199]).sum()
    for bad, good in ((3, 4), (70, 72), (71, 72), (199, 0)):
        expected[expected == bad] = good
    np.testing.assert_array_equal(stream, expected)
    np.testing.assert_array_equal(stream, labels(skipping, 10))
    assert skipping.num_replaced == 4


def test_a_single_bad_image_among_the_first_does_not_stop_the_run():
    order = epochs(5000, 0)
    loader = numbered_loader(5000, 8, on_error='skip', bad=[order[2]], max_bad_share=0.01)
    with loader.iterate(0, 4) as batches:
        assert len(list(batches)) == 4
    assert loader.num_replaced == 1


def test_too_many_bad_images_stop_the_run():
    loader = numbered_loader(16, 8, on_error='skip', bad=range(0, 16, 2), max_bad_share=0.01)
    with pytest.raises(UserError, match=r'of \d+ images were unreadable.*max_bad_share=0\.01'):
        list(loader.iterate(0, 100))
    assert 10 < loader.num_replaced < 20


def test_a_data_set_of_unreadable_images_stops_the_run_at_once():
    loader = numbered_loader(1000, 8, on_error='skip', bad=range(1000), max_bad_share=1)
    with pytest.raises(UserError, match='100 images in a row are unreadable'):
        next(loader.iterate(0))


@pytest.mark.parametrize('content', [b'', b'not an image', None])
def test_the_error_of_an_unreadable_file_names_it_and_the_remedy(photo_folder, content):
    root = photo_folder(8)
    source = make_source('folder', 'train', path=str(root))
    name = source[2]['name']
    if content is None:
        whole = Path(name).read_bytes()
        content = whole[: len(whole) // 2]
    Path(name).write_bytes(content)
    loader = make_loader(source, batch_size=8, rows=range(8), **PHOTO)
    with pytest.raises(UserError, match=f"{name}.*dataset.on_error='skip'"):
        list(loader.iterate(0, 2))
    with pytest.raises(UserError, match=name):
        list(eval_batches(source, batch_size=8, rows=range(8), image_size=(16, 16)))


def test_a_file_that_was_deleted_is_an_unreadable_image(photo_folder):
    root = photo_folder(8)
    source = make_source('folder', 'train', path=str(root))
    deleted = source[0]['name']
    (root / deleted).unlink()
    options = {'batch_size': 8, 'rows': range(8), **PHOTO}
    with pytest.raises(UserError, match=f'{deleted} cannot be read: No such file'):
        list(make_loader(source, **options).iterate(0, 1))
    loader = make_loader(source, **options, on_error='skip', max_bad_share=0.5)
    assert len(list(loader.iterate(0, 2))) == 2
    assert loader.num_replaced >= 1


def test_images_of_different_dtypes_cannot_share_a_batch(photo_folder):
    root = photo_folder(10)
    np.save(root / 'deep.npy', np.zeros((20, 20, 3), np.float32))
    source = make_source('folder', 'train', path=str(root))
    loader = make_loader(source, batch_size=8, rows=range(8), **PHOTO)
    with pytest.raises(UserError, match=r'several depths.*deep\.npy .float32. and .*\.jpg .uint8'):
        list(loader.iterate(0, 4))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'on_error': 'ignore'}, 'dataset.on_error'),
        ({'threads': 0}, 'dataset.threads'),
        ({'workers': -1}, 'dataset.workers'),
        ({'prefetch': 0}, 'dataset.prefetch'),
        ({'seed': -1}, 'seed=-1'),
        ({'crop': 'clip'}, "dataset.crop='clip' must be retry or clamp"),
    ],
)
def test_values_that_are_not_allowed_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        numbered_loader(10, 2, **options)
