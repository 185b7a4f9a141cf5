"""Pixels that are not finite or missing, and the choice of bands."""

import io
import warnings

import numpy as np
import pytest
import tifffile
from helpers.images import encode
from PIL import Image

from mae_jax.data.images.decode import BadImage, decode
from mae_jax.data.transforms.views import eval_transform

LOWEST = np.finfo(np.float32).min


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def tiff(array) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric='minisblack', planarconfig='contig')
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def load(data, channels, **options):
    return np.asarray(decode({'image': data, 'name': 'some/file'}, channels, **options))


@pytest.mark.parametrize('write', [tiff, npy])
@pytest.mark.parametrize('value', [np.nan, np.inf, LOWEST, 3.4e38])
@pytest.mark.parametrize('dtype', ['f4', 'f8'])
def test_a_pixel_that_is_no_number_names_image_place_and_field(write, value, dtype):
    array = np.random.default_rng(0).normal(size=(8, 9, 3)).astype(dtype)
    array[2, 5, 1] = value
    stored = array[2, 5, 1]
    with pytest.raises(BadImage) as raised:
        load(write(array), 3)
    message = str(raised.value)
    assert 'some/file' in message
    assert 'band 1 is' in message and 'row 2, column 5' in message
    assert f'dataset.nodata={stored}' in message
    value = float(message.partition('dataset.nodata=')[2].split(' ')[0])  # as the message says
    filled = load(write(array), 3, nodata=value)
    others = array[..., 1][array[..., 1] != stored] if value == value else array[..., 1]
    expected = array.copy()
    expected[2, 5, 1] = np.nanmean(others.astype(float))
    np.testing.assert_allclose(filled, expected, rtol=1e-7 if dtype == 'f4' else 1e-14)


@pytest.mark.parametrize('dtype', ['u1', 'u2', 'i2'])
def test_missing_integers_get_the_mean_of_their_band(dtype):
    array = np.full((4, 4, 5), 10, dtype)
    array[0] = 13
    array[3, :, 2] = 7
    filled = load(npy(array), 5, nodata=7)
    expected = array.copy()
    expected[3, :, 2] = 11  # of 4 times 13 and 8 times 10
    np.testing.assert_array_equal(filled, expected)
    np.testing.assert_array_equal(load(npy(array), 5, nodata=-9999.0), array)


def test_missing_pixels_of_a_picture_and_before_it_is_scaled():
    picture = np.full((4, 4, 3), 100, np.uint8)
    picture[0, 0] = 0
    data = encode(Image.fromarray(picture), 'PNG')
    np.testing.assert_array_equal(load(data, 3, nodata=0), np.full((4, 4, 3), 100))
    deep = np.full((4, 4), 25700, np.uint16)
    deep[0, 0] = 65535
    np.testing.assert_array_equal(load(tiff(deep), 3, nodata=65535), np.full((4, 4, 3), 100))


def test_an_image_without_a_pixel_that_is_not_missing_is_refused():
    array = np.ones((4, 4, 2), np.float32)
    array[..., 1] = -9999
    with pytest.raises(BadImage, match=r'some/file.*band 1 .*dataset\.nodata'):
        load(npy(array), 2, nodata=-9999)


def test_missing_pixels_do_not_spoil_their_neighbours_when_an_image_is_resized():
    array = np.full((40, 40, 1), 5, np.float32)
    array[:20] = LOWEST
    record = {'image': tiff(array[..., 0]), 'name': 'some/file'}
    with pytest.raises(BadImage, match='some/file'):
        eval_transform(record, image_size=(8, 8), channels=1)
    pixels = eval_transform(record, image_size=(8, 8), channels=1, nodata=float(LOWEST))
    np.testing.assert_array_equal(pixels, np.full((8, 8, 1), 5, np.float32))


@pytest.mark.parametrize('dtype', ['u1', 'u2', 'f4'])
def test_bands_are_chosen_in_order_and_counted_from_zero(dtype):
    array = np.random.default_rng(0).integers(0, 250, (10, 12, 7)).astype(dtype)
    first = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    for data in (tiff(array), npy(array), npy(first)):
        np.testing.assert_array_equal(load(data, 3, bands=(3, 2, 1)), array[..., [3, 2, 1]])
        np.testing.assert_array_equal(load(data, 1, bands=(6,)).squeeze(), array[..., 6])
        with pytest.raises(BadImage, match=r'counts from 0.*7 band'):
            load(data, 3, bands=(1, 2, 7))


def test_bands_of_photographs_are_their_colours():
    rgba = np.random.default_rng(0).integers(0, 256, (10, 12, 4), np.uint8)
    data = encode(Image.fromarray(rgba), 'PNG')
    np.testing.assert_array_equal(load(data, 3, bands=(2, 1, 0)), rgba[..., [2, 1, 0]])
    np.testing.assert_array_equal(load(data, 2, bands=(3, 0)), rgba[..., [3, 0]])
    grey = encode(Image.fromarray(rgba[..., 0]), 'PNG')
    np.testing.assert_array_equal(load(grey, 3, bands=(0, 0, 0)), np.repeat(rgba[..., :1], 3, -1))
