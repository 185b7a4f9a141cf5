"""Corrupted images: keyed, in the benchmark's amounts, and one sentence where they cannot be."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.images import encode, smooth_picture

from mae_jax.data.images.decode import BadImage
from mae_jax.data.loader.batches import eval_batches
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.transforms import corruptions
from mae_jax.data.transforms.corruptions import (
    CORRUPTIONS,
    CorruptedSource,
    canvas_size,
    corrupt,
    corruption_functions,
)
from mae_jax.data.transforms.views import eval_transform
from mae_jax.errors import UserError

SIZE = (64, 96)


@pytest.fixture(scope='module')
def library():
    pytest.importorskip('imagecorruptions')


@pytest.fixture
def pixels():
    return np.asarray(smooth_picture(0, SIZE[1], SIZE[0]))


class Files:
    """Two photographs as files."""

    num_classes, class_names, identity = 2, ('a', 'b'), 'two'

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {'image': encode(smooth_picture(index, 80, 60), 'PNG'), 'label': index, 'name': 'x'}


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_a_corruption_is_a_function_of_its_key_whatever_else_draws(library, pixels, name):
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    first = corrupt(pixels, name, 3, (0, 1, 2))
    np.testing.assert_array_equal(np.random.random(4), expected)  # others' stream goes on
    assert first.dtype == np.uint8 and first.shape == (*SIZE, 3)
    np.random.seed(4)
    np.testing.assert_array_equal(first, corrupt(pixels, name, 3, (0, 1, 2)))
    assert (first != pixels).mean() > 0.02
    random = name not in ('defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate')
    random &= name != 'jpeg_compression'
    assert (first != corrupt(pixels, name, 3, (0, 1, 3))).any() == random


def test_threads_do_not_mix_their_random_numbers(library, pixels):
    tasks = [(name, key) for key in range(8) for name in ('gaussian_noise', 'frost', 'fog')]

    def one(task):
        return corrupt(pixels, task[0], 2, (task[1],))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: threads take turns within a corruption
    try:
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(one, tasks))
    finally:
        sys.setswitchinterval(interval)
    for task, result in zip(tasks, together, strict=True):
        np.testing.assert_array_equal(result, one(task), err_msg=str(task))


def test_gaussian_noise_has_the_benchmarks_standard_deviation(library):
    grey = np.full((224, 224, 3), 128, np.uint8)
    noise = corrupt(grey, 'gaussian_noise', 1, (0,)).astype(float) - 128
    assert noise.std() / 255 == pytest.approx(0.08, rel=0.02)  # Hendrycks & Dietterich's code


def test_a_source_is_cropped_as_for_evaluation_and_then_corrupted(library):
    for corruption in (None, 'contrast'):
        source = CorruptedSource(Files(), SIZE, 3, corruption, 5)
        assert len(source) == 2 and source.class_names == ('a', 'b')
        for index in range(2):
            crop = eval_transform(Files()[index], image_size=SIZE, channels=3)
            if corruption:  # by hand: a twentieth of the distance from the mean
                mean = (crop / 255).mean(axis=(0, 1))
                crop = np.uint8(((crop / 255 - mean) * 0.05 + mean) * 255)
            record = source[index]
            assert record['label'] == index
            difference = record['image'].astype(int) - crop
            assert abs(difference).max() <= 1 and (difference == 0).mean() > 0.99


def test_images_severities_and_seeds_have_keys_of_their_own(library):
    grey = ArraySource(np.full((2, 40, 40, 3), 128, np.uint8), [0, 1])

    def image(index=0, **fields):
        fields = {'corruption': 'impulse_noise', 'severity': 1, 'seed': 0} | fields
        return CorruptedSource(grey, (40, 40), 3, **fields)[index]['image']

    assert (image() == image()).all()
    for other in (image(index=1), image(seed=1)):
        assert (image() != other).any()
    places = [(image(severity=s) != 128).any(-1) for s in (1, 2)]
    assert (places[0] & ~places[1]).any()  # not the same pixels and more


def test_grey_images_stay_grey(library):
    digits = ArraySource(np.arange(128, dtype=np.uint8).reshape(2, 8, 8), [0, 1])
    clean = CorruptedSource(digits, (224, 224), 1)
    corrupted = CorruptedSource(digits, (224, 224), 1, 'brightness', 3)
    expected = eval_transform(digits[1], image_size=(224, 224), channels=1)
    np.testing.assert_array_equal(clean[1]['image'], expected)
    assert corrupted[1]['image'].shape == (224, 224, 1)
    assert corrupted[1]['image'].mean() > expected.mean()


def test_identities_differ_where_images_do():
    grey = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), [0, 1])
    sources = [CorruptedSource(grey, (8, 8), 3, *key) for key in ((), ('fog', 1), ('fog', 2))]
    sources += [
        CorruptedSource(grey, (8, 8), 3, 'fog', 1, seed=1),
        CorruptedSource(grey, (9, 9), 3),
    ]
    assert len({source.identity for source in sources}) == 5
    assert sources[0].identity == CorruptedSource(grey, (8, 8), 3).identity


def test_deeper_images_are_refused():
    deep = CorruptedSource(ArraySource(np.zeros((1, 8, 8, 3), np.float32), [0]), (8, 8), 3)
    with pytest.raises(BadImage, match=r'array/0 has pixels of float32.* 8-bit'):
        deep[0]


@pytest.mark.parametrize(
    ('image_size', 'expected'),
    [((64, 64), (224, 224)), ((96, 64), (336, 224)), ((448, 448), (224, 224))],
)
def test_images_are_corrupted_at_224_pixels(image_size, expected):
    assert canvas_size(image_size) == expected


def test_without_the_package_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'imagecorruptions.corruptions', None)
    monkeypatch.setitem(sys.modules, 'imagecorruptions', None)
    corruption_functions.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'mae_jax\[robustness\]'\.$") as caught:
        corruptions.corrupt(np.zeros((32, 32, 3), np.uint8), 'fog', 1, (0,))
    assert '\n' not in str(caught.value)


@pytest.mark.slow
def test_worker_processes_make_the_same_pixels(library):
    source = CorruptedSource(Files(), SIZE, 3, 'impulse_noise', 4)
    options = dict(batch_size=2, rows=[0, 1], image_size=SIZE, crop_share=1.0, threads=1)
    batches = []
    for workers in (0, 1):
        with eval_batches(source, workers=workers, **options) as loaded:
            batches.append(next(loaded))
    np.testing.assert_array_equal(batches[0]['image'], batches[1]['image'])
    np.testing.assert_array_equal(batches[0]['image'][1], source[1]['image'])
