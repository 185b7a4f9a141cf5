"""Reducing one image: its file format, its pixels, and the difference that is measured."""

import io

import numpy as np
import pytest
from helpers.images import encode, smooth_picture
from PIL import Image

from mae_jax.data.images.decode import BadImage, decode
from mae_jax.data.prepare.reduce import compare, reduce_image

BICUBIC = Image.Resampling.BICUBIC


def reduce(data, short_side=32, quality=95, channels=3):
    return reduce_image({'image': data, 'name': 'x'}, short_side, quality, channels)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(('size', 'reduced'), [((90, 61), (47, 32)), ((61, 90), (32, 47))])
def test_a_photograph_becomes_the_jpeg_of_pillows_bicubic(size, reduced):
    data = encode(smooth_picture(0, *size), 'JPEG', quality=90)
    ours = reduce(data, quality=80)
    by_hand = Image.open(io.BytesIO(data)).resize(reduced, BICUBIC)
    expected = encode(by_hand, 'JPEG', quality=80, subsampling=0)
    assert Image.open(io.BytesIO(ours)).size == reduced
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(ours))), np.asarray(Image.open(io.BytesIO(expected)))
    )


@pytest.mark.parametrize('size', [(32, 90), (40, 32), (20, 20)])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_a_small_image_is_unchanged_byte_for_byte(size, kind):
    data = encode(smooth_picture(0, *size), kind)
    assert reduce(data) == data


@pytest.mark.parametrize(
    ('channels', 'mode', 'kind'), [(1, 'L', 'JPEG'), (2, 'LA', 'PNG'), (4, 'RGBA', 'PNG')]
)
def test_grey_and_transparent_pictures_keep_their_bands(channels, mode, kind):
    bands = np.random.default_rng(0).integers(0, 256, (50, 60, channels), np.uint8)
    picture = Image.fromarray(bands.squeeze())
    assert picture.mode == mode
    ours = Image.open(io.BytesIO(reduce(encode(picture, 'PNG'), channels=channels, quality=100)))
    assert (ours.format, ours.mode, ours.size) == (kind, mode, (38, 32))
    for i, band in enumerate(ours.split()):  # not blended by alpha
        expected = np.asarray(Image.fromarray(bands[..., i]).resize((38, 32), BICUBIC), int)
        assert abs(np.asarray(band) - expected).max() <= (2 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('dtype', [np.uint16, np.int16, np.float32])
def test_data_keep_their_dtype_and_are_stored_without_loss(dtype):
    data = (np.random.default_rng(0).random((5, 64, 48)) * 20000).astype(dtype)  # bands first
    ours = np.load(io.BytesIO(reduce(npy(data), channels=5)))
    assert (ours.dtype, ours.shape) == (dtype, (42, 32, 5))
    band = np.asarray(Image.fromarray(data[3].astype(np.float32)).resize((32, 42), BICUBIC))
    np.testing.assert_array_equal(ours[..., 3], (band if dtype == np.float32 else np.rint(band)))
    assert reduce(npy(data), short_side=48, channels=5) == npy(data)


def test_a_picture_too_long_for_a_jpeg_becomes_a_png():
    data = encode(Image.new('RGB', (140_000, 2)), 'PNG')
    ours = Image.open(io.BytesIO(reduce(data, short_side=1)))
    assert (ours.format, ours.size) == ('PNG', (70_000, 1))


def test_npy_of_8_bits_does_not_become_a_jpeg():
    data = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    ours = np.load(io.BytesIO(reduce(npy(data))))
    np.testing.assert_array_equal(ours, np.asarray(Image.fromarray(data).resize((32, 32), BICUBIC)))


def test_a_deep_tiff_becomes_npy():
    grey = np.random.default_rng(0).integers(0, 65536, (64, 64), np.uint16)
    ours = np.load(io.BytesIO(reduce(encode(Image.fromarray(grey), 'TIFF'), channels=1)))
    assert (ours.dtype, ours.shape) == (np.uint16, (32, 32, 1))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_orientation_is_kept(kind):
    exif = Image.Exif()
    exif[274], exif[271] = 6, 'a camera'
    picture = smooth_picture(0, 96, 64)
    data = encode(picture, kind, exif=exif, quality=100, subsampling=0)
    ours = {'image': reduce(data, quality=100), 'name': 'x'}
    assert decode(ours, 3).size == (48, 32)
    rotated = decode(ours, 3, apply_exif=True)
    expected = picture.resize((48, 32), BICUBIC).transpose(Image.Transpose.ROTATE_270)
    assert abs(np.asarray(rotated, float) - np.asarray(expected)).mean() < 2
    assert 271 not in Image.open(io.BytesIO(ours['image'])).getexif()


def test_an_image_that_cannot_be_decoded_is_a_bad_image():
    data = encode(smooth_picture(0, 96, 64), 'JPEG')
    for broken in (b'', b'text', data[: len(data) // 2]):
        with pytest.raises(BadImage, match='x cannot be read'):
            reduce(broken)


def test_crops_of_the_same_rectangle_are_compared():
    picture = smooth_picture(0, 512, 512)
    before = {'image': encode(picture, 'PNG', compress_level=1), 'name': 'x'}
    half = picture.resize((256, 256), BICUBIC)
    after = {'image': encode(half, 'PNG'), 'name': 'x'}
    for seed in range(3):
        train, evaluation = compare(before, after, 3, seed)
        assert train < 0.5 and evaluation == 0  # evaluation resizes to 256 itself
    lighter = {'image': encode(half.point(lambda x: min(x, 245) + 10), 'PNG'), 'name': 'x'}
    _, evaluation = compare(before, lighter, 3, 0)
    assert evaluation == pytest.approx(9.8, abs=0.3)
