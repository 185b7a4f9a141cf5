"""Training views and evaluation crops: the pixels of torchvision and Pillow, from keyed draws."""

import io
import math

import numpy as np
import pytest
from helpers.images import encode, smooth_picture
from PIL import Image

from mae_jax.data.transforms import crops, views
from mae_jax.data.transforms.color_jitter import ColorJitter
from mae_jax.data.transforms.randaugment import RandAugment
from mae_jax.errors import UserError

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def one_view(record, **options):
    (pixels,) = views.train_views(record, **options)['image']
    return pixels


def torchvision_box(width, height, rng, scale, ratio):
    """Draws (top, left, height, width) as torchvision's RandomResizedCrop.get_params does."""
    for _ in range(10):
        target = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = int(round(math.sqrt(target * aspect)))
        h = int(round(math.sqrt(target / aspect)))
        if 0 < w <= width and 0 < h <= height:
            i = rng.integers(0, height - h + 1)
            j = rng.integers(0, width - w + 1)
            return i, j, h, w
    if width / height < min(ratio):
        w, h = width, int(round(width / min(ratio)))
    elif width / height > max(ratio):
        w, h = int(round(height * max(ratio))), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ('width', 'height', 'size'),
    [(500, 375, (224, 224)), (60, 90, (96, 64)), (8, 8, (8, 8)), (400, 20, (32, 32))],
)
@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_a_training_image_is_pillows_crop_then_resize_then_flip(width, height, size, kind):
    record = {'image': encode(smooth_picture(0, width, height), kind), 'name': 'picture'}
    picture = Image.open(io.BytesIO(record['image']))
    flips = set()
    for index in range(12):
        ours = one_view(
            record,
            seed=3,
            epoch=2,
            index=index,
            image_size=size,
            channels=3,
            crop_scale=SCALE,
            crop_ratio=RATIO,
            flip=True,
        )
        rng = np.random.default_rng((3, 1, 2, index))
        top, left, h, w = torchvision_box(width, height, rng, SCALE, RATIO)
        crop = picture.crop((left, top, left + w, top + h)).resize(size[::-1], Image.BICUBIC)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.FLIP_LEFT_RIGHT)
            flips.add(index)
        np.testing.assert_array_equal(ours, np.asarray(crop))
        assert ours.dtype == np.uint8
    assert 0 < len(flips) < 12


def train(record, **options):
    key = {'seed': 0, 'epoch': 0, 'index': 0, 'image_size': (16, 16), 'channels': 3, 'flip': True}
    crop = {'crop_scale': SCALE, 'crop_ratio': RATIO}
    return one_view(record, **key | crop | options)


@pytest.mark.parametrize('crop', ['retry', 'clamp', 'fixed'])
@pytest.mark.parametrize(
    'augment', [None, RandAugment((9, 9, 9), probability=1), ColorJitter(0.4, 0.4, 0.4, 0.1)]
)
def test_a_transform_depends_on_seed_epoch_and_index_alone(augment, crop):
    record = {'image': encode(smooth_picture(2, 60, 50), 'PNG'), 'name': 'picture'}

    def run(**key):
        return train(record, augment=augment, crop=crop, **key)

    np.testing.assert_array_equal(run(), run())
    for other in ({'seed': 1}, {'epoch': 1}, {'index': 1}):
        assert (run() != run(**other)).any()
    assert (run(seed=1) != run(epoch=1)).any()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('kind', [RandAugment, ColorJitter])
def test_augmentation_is_last_and_does_not_change_crop_and_flip(kind, channels):
    record = {'image': encode(smooth_picture(2, 60, 50), 'PNG'), 'name': 'picture'}
    augment = ColorJitter(0.4, 0.4, 0.4, 0.1)
    if kind is RandAugment:
        augment = RandAugment((9,) * channels, probability=0.5)
    changed = 0
    for epoch in range(12):
        key = {'seed': 5, 'epoch': epoch, 'index': 7, 'channels': channels}
        plain, ours = train(record, **key), train(record, **key, augment=augment)
        picture = Image.fromarray(plain.squeeze())
        expected = np.asarray(augment(picture, np.random.default_rng((5, 2, epoch, 7))))
        np.testing.assert_array_equal(ours, expected.reshape(16, 16, channels))
        changed += (ours != plain).any()
    assert (0 < changed < 12) if kind is RandAugment else changed == 12


def test_augmentation_of_other_than_8_bit_pictures_is_refused():
    for dtype, channels in ((np.uint16, 3), (np.float32, 1), (np.uint8, 4)):
        record = {'image': np.zeros((20, 20, channels), dtype), 'name': 'data'}
        for augment in (RandAugment((0,) * channels), ColorJitter(0.4)):
            with pytest.raises(UserError, match=r"8-bit RGB and grey.*set dataset\.augment=''"):
                train(record, channels=channels, augment=augment)


def test_the_kind_of_crop_is_chosen_by_name():
    record = {'image': encode(smooth_picture(2, 90, 30), 'PNG'), 'name': 'picture'}
    options = {'crop_scale': (0.9, 1.0), 'flip': False}  # most do not fit
    picture = smooth_picture(2, 90, 30)
    for crop, draw in (
        ('retry', crops.random_resized_crop_box),
        ('clamp', crops.clamped_crop_box),
    ):
        for index in range(9):
            box = draw(90, 30, np.random.default_rng((0, 1, 0, index)), (0.9, 1.0), RATIO)
            expected = crops.resize_crop(picture, box, (16, 16))
            ours = train(record, index=index, crop=crop, **options)
            np.testing.assert_array_equal(ours, expected)


def resized_to_cover(picture, size, share):
    """Resizes a picture to the smallest size of its proportions that covers `size / share`."""
    height, width = (int(side / share) for side in size)
    w, h = picture.size
    if w * height < h * width:  # too narrow: the width decides
        return picture.resize((width, width * h // w), Image.BICUBIC)
    return picture.resize((height * w // h, height), Image.BICUBIC)


SIZES = [(96, 96), (224, 224), (64, 96), (96, 64), (225, 225), (256, 64)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('width_height', [(300, 200), (200, 300), (60, 60)])
def test_a_centre_crop_for_training_is_that_of_evaluation(size, width_height):
    picture = smooth_picture(3, *width_height)
    record = {'image': encode(picture, 'BMP'), 'name': 'picture'}
    resized = resized_to_cover(picture, size, 0.875 if max(size) <= 224 else 1)
    left, top = (round((a - b) / 2) for a, b in zip(resized.size, size[::-1], strict=True))
    expected = resized.crop((left, top, left + size[1], top + size[0]))
    evaluated = views.eval_transform(record, image_size=size, channels=3)
    flips = 0
    for epoch in range(6):
        options = {'epoch': epoch, 'image_size': size, 'crop': 'center'}
        ours = train(record, flip=False, **options)
        np.testing.assert_array_equal(ours, np.asarray(expected))
        np.testing.assert_array_equal(ours, evaluated)
        flipped = train(record, flip=True, **options)
        flips += (flipped != ours).any()
        assert any((flipped == way).all() for way in (ours, ours[:, ::-1]))
    assert 0 < flips < 6


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('width_height', [(300, 200), (200, 300), (60, 60)])
def test_a_fixed_size_crop_is_pillows_resize_then_crop_then_flip(size, width_height):
    picture = smooth_picture(4, *width_height)
    record = {'image': encode(picture, 'BMP'), 'name': 'picture'}
    resized = resized_to_cover(picture, size, 0.875)
    positions = set()
    for index in range(5):
        rng = np.random.default_rng((0, 1, 0, index))
        top = rng.integers(0, resized.height - size[0] + 1)
        left = rng.integers(0, resized.width - size[1] + 1)
        expected = resized.crop((left, top, left + size[1], top + size[0]))
        if rng.random() < 0.5:
            expected = expected.transpose(Image.FLIP_LEFT_RIGHT)
        ours = train(record, index=index, image_size=size, crop='fixed')
        np.testing.assert_array_equal(ours, np.asarray(expected))
        positions.add((top, left))
    assert len(positions) > 3


@pytest.mark.parametrize(('width', 'height'), [(19, 16), (16, 18), (16, 16)])
def test_positions_of_a_fixed_size_crop_are_uniform(width, height):
    # 14 / .875 is 16: these images are not resized, and each pixel holds its coordinates.
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.mgrid[:height, :width]
    record = {'image': pixels, 'name': 'coordinates'}
    counts = np.zeros((height - 13, width - 13), int)
    for index in range(60 * counts.size):
        ours = train(record, index=index, image_size=(14, 14), crop='fixed', flip=False)
        top, left, _ = ours[0, 0]
        np.testing.assert_array_equal(ours, pixels[top : top + 14, left : left + 14])
        counts[top, left] += 1
    assert abs(counts - 60).max() < 33  # 4.2 standard deviations; the corners are among them


def test_a_fixed_size_crop_keeps_other_depths():
    array = np.random.default_rng(0).integers(0, 60_000, (16, 20, 5)).astype(np.uint16)
    options = {'image_size': (14, 14), 'channels': 5, 'crop': 'fixed', 'flip': False}
    ours = train({'image': array, 'name': 'bands'}, **options)
    assert (ours.dtype, ours.shape) == (np.uint16, (14, 14, 5))
    windows = np.lib.stride_tricks.sliding_window_view(array, (14, 14), axis=(0, 1))
    windows = windows.transpose(0, 1, 3, 4, 2)  # top, left, then the crop
    assert (windows == ours).all(axis=(2, 3, 4)).sum() == 1


@pytest.mark.parametrize('size', [96, 224, 225, 448])
@pytest.mark.parametrize('width_height', [(500, 375), (375, 500), (301, 301), (100, 900)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(size, width_height):
    picture = smooth_picture(3, *width_height)
    record = {'image': encode(picture, 'BMP'), 'name': 'picture'}
    short = int(size / (224 / 256)) if size <= 224 else size
    w, h = width_height
    if w <= h:
        new_w, new_h = short, int(short * h / w)
    else:
        new_w, new_h = int(short * w / h), short
    resized = picture.resize((new_w, new_h), Image.BICUBIC)
    top, left = int(round((new_h - size) / 2.0)), int(round((new_w - size) / 2.0))
    expected = resized.crop((left, top, left + size, top + size))
    ours = views.eval_transform(record, image_size=(size, size), channels=3)
    np.testing.assert_array_equal(ours, np.asarray(expected))


@pytest.mark.parametrize(('share', 'short'), [(1.0, 96), (0.9, 106), (0.5, 192)])
def test_the_share_of_the_centre_crop_can_be_given(share, short):
    picture = smooth_picture(3, 301, 200)
    record = {'image': encode(picture, 'PNG'), 'name': 'picture'}
    resized = picture.resize((int(301 * short / 200), short), Image.BICUBIC)
    left, top = (round((side - 96) / 2) for side in resized.size)
    expected = resized.crop((left, top, left + 96, top + 96))
    ours = views.eval_transform(record, image_size=(96, 96), channels=3, crop_share=share)
    np.testing.assert_array_equal(ours, np.asarray(expected))


@pytest.mark.parametrize('image_size', [(64, 96), (96, 64), (256, 64)])
def test_a_rectangle_is_covered_without_distortion(image_size):
    # A disc in the middle stays a disc, and nothing outside the picture shows.
    y, x = np.mgrid[:200, :300]
    disc = ((y - 99.5) ** 2 + (x - 149.5) ** 2 < 50**2).astype(np.uint8) * 155 + 100
    ours = views.eval_transform(
        {'image': disc[..., None], 'name': 'disc'}, image_size=image_size, channels=1
    )[..., 0]
    assert ours.shape == image_size
    assert ours.min() > 70  # 100 less bicubic's overshoot: no padding
    inside = ours > 177
    across, down = inside[image_size[0] // 2].sum(), inside[:, image_size[1] // 2].sum()
    if max(across, down) < min(image_size):
        assert abs(int(across) - int(down)) <= 2


@pytest.mark.parametrize('dtype', [np.uint16, np.int16, np.float32])
def test_other_depths_are_resized_band_by_band_in_float(dtype):
    rng = np.random.default_rng(0)
    array = (rng.random((20, 30, 5)) * 60_000 - (30_000 if dtype == np.int16 else 0)).astype(dtype)
    record = {'image': array, 'name': 'bands'}
    ours = views.eval_transform(record, image_size=(225, 225), channels=5)  # no crop share
    assert ours.dtype == dtype
    left = round((337 - 225) / 2)
    for band in range(5):
        image = Image.fromarray(array[..., band].astype(np.float32))
        expected = np.asarray(image.resize((337, 225), Image.BICUBIC))[:, left : left + 225]
        if dtype != np.float32:
            limits = np.iinfo(dtype)
            expected = np.clip(np.round(expected), limits.min, limits.max)
        np.testing.assert_array_equal(ours[..., band], expected.astype(dtype))
