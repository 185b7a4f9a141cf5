"""Decoding by the content of a file: bands, depths, palettes, orientation, errors."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from helpers.images import encode
from PIL import Image

from mae_jax.data.images.decode import BadImage, decode


def load(data, channels=3, **options):
    return np.asarray(decode({'image': data, 'name': 'some/file'}, channels, **options))


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(array, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{'photometric': 'minisblack'} | options)
    return buffer.getvalue()


def test_grey_is_repeated_for_rgb_and_unchanged_for_one_channel():
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    data = encode(Image.fromarray(grey), 'PNG')
    np.testing.assert_array_equal(load(data), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(load(data, 1), grey)


def test_cmyk_becomes_rgb():
    # Ink covers light: R = 255 * (1 - C) * (1 - K), as Pillow computes it.
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[...] = (255, 0, 0, 0)  # cyan: no red
    data = encode(Image.fromarray(ink, 'CMYK'), 'TIFF')
    np.testing.assert_array_equal(load(data), np.broadcast_to((0, 255, 255), (8, 8, 3)))
    jpeg = load(encode(Image.fromarray(ink, 'CMYK'), 'JPEG', quality=100))
    assert jpeg.shape == (8, 8, 3)
    np.testing.assert_allclose(jpeg.astype(int), np.broadcast_to((0, 255, 255), (8, 8, 3)), atol=3)


@pytest.mark.parametrize('transparency', [None, 0, b'\x00\x80'])
def test_palette_colours_are_looked_up(transparency):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    image = image.convert('P')
    image.putpalette([10, 20, 30, 200, 150, 100])
    options = {} if transparency is None else {'transparency': transparency}
    expected = [[[10, 20, 30], [200, 150, 100]], [[200, 150, 100], [10, 20, 30]]]
    np.testing.assert_array_equal(load(encode(image, 'PNG', **options)), expected)


def test_alpha_is_dropped_without_blending_and_kept_for_four_channels():
    rgba = np.array([[[10, 20, 30, 0], [40, 50, 60, 128]]], np.uint8)
    data = encode(Image.fromarray(rgba), 'PNG')
    np.testing.assert_array_equal(load(data), rgba[..., :3])
    np.testing.assert_array_equal(load(data, 4), rgba)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_sixteen_bit_grey_is_divided_by_257(kind):
    grey = np.array([[0, 257, 25700], [65535, 385, 386]], np.uint16)
    expected = np.array([[0, 1, 100], [255, 1, 2]], np.uint8)  # 1.498 -> 1, 1.502 -> 2
    data = encode(Image.fromarray(grey), kind)
    np.testing.assert_array_equal(load(data), np.stack([expected] * 3, -1))
    np.testing.assert_array_equal(load(data, 1)[..., 0], grey)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16, np.float32, '>u2', '>f4'])
@pytest.mark.parametrize('bands', [1, 2, 3, 4, 7])
def test_arrays_and_deep_tiffs_keep_their_numbers(dtype, bands):
    array = (np.random.default_rng(0).random((5, 6, bands)) * 250).astype(dtype)
    files = [npy(array), npy(np.moveaxis(array, -1, 0))]
    if array.dtype.isnative and (array.dtype != np.uint8 or bands > 4):
        first = np.moveaxis(array, -1, 0)
        files += [tiff(first)]  # a page a band
        if bands > 1:
            files += [tiff(array, planarconfig='contig'), tiff(first, planarconfig='separate')]
    for data in files:
        loaded = load(data, bands).reshape(array.shape)
        np.testing.assert_array_equal(loaded, array)
        assert loaded.dtype == array.dtype.newbyteorder('=')


def test_a_sixteen_bit_rgb_tiff_is_not_cut_to_eight():
    rgb = np.array([[[1, 300, 65535]]], np.uint16).repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(load(tiff(rgb, photometric='rgb')), rgb)


def test_a_record_may_hold_the_array_itself():
    array = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    np.testing.assert_array_equal(load(array, 1), array[..., 0])
    np.testing.assert_array_equal(load(array, 3), array.repeat(3, -1))


def test_exif_orientation_is_applied_only_on_request():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40).convert('RGB')
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated clockwise by 90 degrees
    data = encode(image, 'PNG', exif=exif)
    pixels = np.asarray(image)
    np.testing.assert_array_equal(load(data), pixels)
    np.testing.assert_array_equal(load(data, apply_exif=True), np.rot90(pixels, -1))


PNG = encode(Image.new('RGB', (8, 8)), 'PNG')


@pytest.mark.parametrize(
    ('data', 'channels', 'reason'),
    [
        (b'', 3, 'empty'),
        (b'plain text', 3, 'known format'),
        (encode(Image.effect_noise((64, 64), 90).convert('RGB'), 'JPEG')[:900], 3, 'truncated'),
        (PNG[:45], 3, ''),
        (PNG, 5, 'channels=5'),
        (npy(np.zeros((4, 4, 2))), 3, 'channels=3'),
        (npy(np.zeros((0, 4, 3))), 3, 'shape'),
        (npy(np.zeros((4, 4, 3), bool)), 3, 'bool'),
        (npy(np.zeros((4, 4, 3)))[:100], 3, ''),
        (npy(np.array([{}], object)), 3, ''),
        (tiff(np.zeros((4, 4, 5), np.uint16), planarconfig='contig'), 3, 'channels=3'),
        (tiff(np.zeros((4, 4, 5), np.uint16), planarconfig='contig')[:100], 5, ''),
    ],
    ids=range(12),
)
def test_the_error_of_a_bad_file_names_it(data, channels, reason):
    with pytest.raises(BadImage, match=f'some/file.*{reason}'):
        load(data, channels)


def test_a_decompression_bomb_is_a_bad_image():
    header = PNG[12:16] + struct.pack('>II', 40_000, 40_000) + PNG[24:29]
    with pytest.raises(BadImage, match=r'some/file.*bomb'):
        load(PNG[:12] + header + struct.pack('>I', zlib.crc32(header)) + PNG[33:])
