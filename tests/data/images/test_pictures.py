"""Kinds of picture files other than TIFF: depth, orientation, and what is named when it fails."""

import base64
import importlib.util
import io
import struct

import numpy as np
import pytest
from helpers.images import deep_png, encode, smooth_picture
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mae_jax.data.images.decode import BadImage, decode
from mae_jax.errors import UserError


def load(data, channels=3, **options):
    return np.asarray(decode({'image': data, 'name': 'some/file'}, channels, **options))


@pytest.mark.parametrize('bands', [1, 2, 3, 4])
def test_a_png_keeps_sixteen_bits(bands):
    pixels = np.random.default_rng(bands).integers(0, 1 << 16, (11, 7, bands), np.uint16)
    data = deep_png(pixels)
    upper = np.asarray(Image.open(io.BytesIO(data)))  # Pillow reads the file, too
    if bands > 2:
        np.testing.assert_array_equal(upper, pixels >> 8)
    loaded = load(data, bands)
    assert loaded.dtype == np.uint16
    np.testing.assert_array_equal(loaded, pixels)
    np.testing.assert_array_equal(load(data, 1, bands=(bands - 1,))[..., 0], pixels[..., -1])
    if bands in (2, 4):  # alpha is dropped, as of 8 bits
        without = load(data, bands - 1)
        np.testing.assert_array_equal(without, pixels[..., :-1])
        assert load(data).shape == (11, 7, 3)


@pytest.mark.parametrize('largest', [1023, 65535])
def test_a_ppm_keeps_sixteen_bits(largest):
    pixels = np.random.default_rng(0).integers(0, largest + 1, (5, 6, 3), np.uint16)
    data = f'P6\n# a comment\n6 5\n{largest}\n'.encode() + pixels.astype('>u2').tobytes()
    loaded = load(data)
    assert loaded.dtype == np.uint16
    np.testing.assert_array_equal(loaded, pixels)
    text = f'P3 6 5 {largest} '.encode() + ' '.join(map(str, pixels.ravel())).encode()
    with pytest.raises(BadImage, match='some/file.*16-bit PNG'):
        load(text)


def test_a_pgm_of_sixteen_bits_is_read_as_other_grey_of_that_depth():
    grey = np.array([[0, 257], [25700, 65535]], np.uint16)
    data = b'P5 2 2 65535\n' + grey.astype('>u2').tobytes()
    np.testing.assert_array_equal(load(data, 1)[..., 0], grey)
    np.testing.assert_array_equal(load(data)[..., 0], [[0, 1], [100, 255]])


TWELVE_BITS = base64.b64decode(
    '/0//UQApAAAAAAAEAAAAAwAAAAAAAAAAAAAABAAAAAMAAAAAAAAAAAABCwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/'
    'ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAAkAAH/k9/gTAbFclaJrqPknjGy'
    'K3OPolREXJ//2Q=='
)
"""A JPEG 2000 without loss of 0, 300, 600, ... 3,300 in 3 rows and 4 columns, of 12 bits, written
by OpenJPEG through imagecodecs."""
TWELVE_BITS_COLOURS = base64.b64decode(
    '/0//UQAvAAAAAAAEAAAAAwAAAAAAAAAAAAAABAAAAAMAAAAAAAAAAAADCwEBCwEBCwEB/1IADAAAAAEBAAQEAAH/'
    'XAAEQGD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAAmAAH/k9/gTAbFclaJ'
    'rqPknjGyK3OPolREXJ+AgP/Z'
)


def test_the_numbers_of_a_jpeg_2000_are_not_widened():
    expected = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    np.testing.assert_array_equal(load(TWELVE_BITS, 1)[..., 0], expected)
    sixteen = np.random.default_rng(0).integers(0, 1 << 16, (20, 30), np.uint16)
    data = encode(Image.fromarray(sixteen), 'JPEG2000')
    np.testing.assert_array_equal(load(data, 1)[..., 0], sixteen)
    with pytest.raises(BadImage, match='some/file.*3 bands of 12 bits.*TIFF'):
        load(TWELVE_BITS_COLOURS)


KINDS = {'PPM': {}, 'JPEG2000': {}, 'AVIF': {'quality': 100, 'subsampling': '4:4:4'}}


@pytest.mark.parametrize('kind', KINDS)
def test_more_kinds_are_read_as_pillow_reads_them(kind):
    data = encode(smooth_picture(0, 40, 30), kind, **KINDS[kind])
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    assert expected.shape == (30, 40, 3)
    np.testing.assert_array_equal(load(data), expected)


@pytest.mark.parametrize('boxed', [False, True])
def test_a_jpeg_2000_that_claims_too_much_is_refused(boxed):
    data = bytearray(encode(smooth_picture(0, 40, 30), 'JPEG2000', no_jp2=not boxed))
    at = data.index(b'\xff\x4f\xff\x51') + 8
    data[at : at + 8] = struct.pack('>II', 20_000, 20_000)
    with pytest.raises(BadImage, match='20,000 x 20,000 pixels, where'):
        load(bytes(data))


@pytest.mark.parametrize('kind', ['BMP', 'TIFF', 'PPM'])
def test_pixels_that_look_like_the_header_of_a_jpeg_2000_are_pixels(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    pixels[4].flat[:12] = [0xFF, 0x4F, 0xFF, 0x51, *range(200, 208)]
    shown = pixels[..., ::-1] if kind == 'BMP' else pixels  # whose files hold blue first
    data = encode(Image.fromarray(shown), kind)
    assert b'\xff\x4f\xff\x51' in data
    np.testing.assert_array_equal(load(data), shown)


def test_a_png_with_bytes_like_the_header_of_a_jpeg_2000_is_a_png():
    chunks = PngInfo()
    chunks.add(b'prIv', b'\xff\x4f\xff\x51' + bytes(range(200, 240)))
    data = encode(smooth_picture(0, 40, 30), 'PNG', pnginfo=chunks)
    np.testing.assert_array_equal(load(data), np.asarray(smooth_picture(0, 40, 30)))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'AVIF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_kind_is_turned_on_request_alone(kind, orientation):
    corner = np.zeros((32, 48, 3), np.uint8)
    corner[:8, :8] = 255
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(Image.fromarray(corner), kind, exif=exif, quality=95)
    plain, upright = load(data), load(data, apply_exif=True)
    assert plain.shape == corner.shape
    assert plain[2:6, 2:6].min() > 200 and plain[12:, 12:].max() < 60
    top, left = orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8)  # where EXIF puts it
    assert upright.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))
    part = upright[:8] if top else upright[-8:]
    part = part[:, :8] if left else part[:, -8:]
    assert part[2:6, 2:6].min() > 200


def test_the_smallest_lossless_webp_is_read():
    # Signature, 14 bits a side; no transform, no cache, no groups, five codes of one symbol, 0.
    bits = '000' + 5 * '1000'
    pixels = int(bits[::-1], 2).to_bytes(3, 'little')
    body = b'\x2f' + (99 | 99 << 14).to_bytes(4, 'little') + pixels
    data = b'RIFF' + struct.pack('<I', 12 + len(body)) + b'WEBPVP8L'
    data += struct.pack('<I', len(body)) + body
    assert len(data) == 28
    np.testing.assert_array_equal(load(data), np.zeros((100, 100, 3)))
    for end in range(12, 25):
        with pytest.raises(BadImage):
            load(data[:end])


def test_a_heic_names_the_package_that_reads_it():
    data = b'\0\0\0\x18ftypheic' + bytes(40)
    has_heif = importlib.util.find_spec('pillow_heif') is not None
    with pytest.raises(UserError, match='some/file' + ('' if has_heif else '.*pillow-heif')):
        load(data)


def test_a_damaged_orientation_matters_only_where_it_is_applied(monkeypatch):
    data = encode(Image.new('RGB', (8, 8)), 'PNG')

    def getexif(image):
        raise ValueError('damaged')

    monkeypatch.setattr(Image.Image, 'getexif', getexif)
    monkeypatch.setattr('PIL.PngImagePlugin.PngImageFile.getexif', getexif)
    assert load(data).shape == (8, 8, 3)
    with pytest.raises(BadImage, match='some/file.*damaged'):
        load(data, apply_exif=True)
