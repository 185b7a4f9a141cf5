"""Images that claim, or unpack to, more than the limits are refused before they are decoded."""

import contextlib
import functools
import io
import lzma
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from helpers.claims import (
    bmp_that_claims,
    deep_tiff,
    encode,
    gif_that_claims,
    jpeg_that_claims,
    npy_that_claims,
    png_that_claims,
    resident_peak,
    tiff_of_shape,
    webp_that_claims,
)
from PIL import Image

from mae_jax.data.images import limits as image_limits
from mae_jax.data.images.decode import BadImage, decode
from mae_jax.data.transforms.views import eval_transform, train_views

SIDE = 10_000
"""Squared it is more than `MAX_IMAGE_PIXELS` and less than what Pillow itself refuses."""
IMAGES = {
    'png': png_that_claims(SIDE, SIDE),
    'png, long': png_that_claims(1 << 30, 1),
    'jpeg': jpeg_that_claims(SIDE, SIDE),
    'webp': webp_that_claims(SIDE, SIDE),
    'bmp': bmp_that_claims(SIDE, SIDE),
    'gif': gif_that_claims(SIDE, SIDE),
    'tiff': tiff_of_shape(SIDE, SIDE, deep=False),
    'tiff, deep': tiff_of_shape(SIDE, SIDE, deep=True),
    'tiff, huge': tiff_of_shape(1 << 20, 1 << 20, deep=True),
    'npy': npy_that_claims(1 << 20, 1 << 20, 3),
    'npy, more than an integer': npy_that_claims(1 << 40, 1 << 40),
}


@pytest.mark.parametrize('name', IMAGES)
def test_an_image_that_claims_too_much_is_refused_before_it_is_decoded(name, allocations):
    before = resident_peak()
    with pytest.raises(BadImage, match=': .*(pixels|bytes|limit|fit its shape)'):
        decode({'image': IMAGES[name], 'name': 'a bomb'}, 3)
    assert allocations() < 1 << 20
    assert resident_peak() - before < 16 << 20


def test_a_webp_is_refused_before_pillow_allocates_its_canvas(monkeypatch):
    monkeypatch.setattr(Image, 'open', lambda *_, **__: pytest.fail('it was opened'))
    lossless = encode(Image.new('RGBA', (8, 8)), 'WEBP', lossless=True)
    at = lossless.index(b'VP8L') + 9
    for data in (
        IMAGES['webp'],
        lossless[:at] + b'\xff' * 4 + lossless[at + 4 :],  # 14 bits a side
    ):
        with pytest.raises(BadImage, match='pixels, where'):
            decode({'image': data, 'name': 'a.webp'}, 3)


def test_a_long_thin_image_is_not_resized_by_its_short_side():
    """2 x 60,000 pixels are few; with the short side resized to 256 they are 7.7 million long."""
    record = {'image': encode(Image.new('RGB', (60_000, 2)), 'PNG'), 'name': 'a.png'}
    with pytest.raises(BadImage, match='too long'):
        eval_transform(record, image_size=(224, 224), channels=3)
    crop = dict(crop_scale=(0.2, 1.0), crop_ratio=(0.75, 4 / 3), flip=True)
    options = dict(seed=0, epoch=0, index=0, image_size=(224, 224), channels=3, **crop)
    with pytest.raises(BadImage, match='too long'):
        train_views(record, crop='fixed', **options)
    assert train_views(record, **options)['image'].shape == (1, 224, 224, 3)  # a square of it


@functools.cache
def packed_zeros() -> bytes:
    """Returns 32 MiB of zeros, compressed."""
    return zlib.compress(bytes(32 << 20), level=1)


@pytest.mark.parametrize('compression', ['zlib', 'lzma'])
def test_a_tiff_that_unpacks_to_more_than_its_pixels_is_refused(compression, allocations):
    data = deep_tiff((64, 64, 3), compression=compression, metadata=None)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        offset, count = page.tags[273].valueoffset, page.tags[279].valueoffset
    packed = {'zlib': packed_zeros, 'lzma': lambda: lzma.compress(bytes(32 << 20), preset=0)}
    bomb = packed[compression]()
    patched = bytearray(data + bomb)
    for at, value in ((offset, len(data)), (count, len(bomb))):
        patched[at : at + 4] = struct.pack('<I', value)
    del data
    tracemalloc.reset_peak()
    base = allocations()
    with pytest.raises(BadImage, match='unpacks to more'):
        decode({'image': bytes(patched), 'name': 'a.tif'}, 3)
    assert allocations() - base < 16 << 20


def test_the_pages_of_a_tiff_must_end():
    chain = b'II*\0' + struct.pack('<I', 8)
    chain += b''.join(struct.pack('<HI', 0, 8 + 6 * (i + 1)) for i in range(300))
    looped = chain + struct.pack('<HI', 0, 8 + 6 * 5)
    for data, message in (
        (looped, 'in a circle'),
        (chain[:8] + b''.join(struct.pack('<HI', 0, 14 + 6 * i) for i in range(20_000)), 'pages'),
    ):
        began = time.monotonic()
        with pytest.raises(BadImage, match=message):
            decode({'image': data, 'name': 'a.tif'}, 3)
        assert time.monotonic() - began < 2


def test_the_number_of_pages_in_the_text_of_a_tiff_is_ignored(allocations):
    """OME's metadata can claim 100 million pages, which would take minutes to look for."""
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="8" SizeY="8" SizeC="1" '
        'SizeZ="1" SizeT="100000000"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData/>'
        '</Pixels></Image></OME>'
    )
    array = np.arange(128, dtype=np.uint16).reshape(2, 8, 8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, description=xml, metadata=None)
    image = decode({'image': buffer.getvalue(), 'name': 'a.ome.tif'}, 2)
    np.testing.assert_array_equal(image, array.transpose(1, 2, 0))
    assert allocations() < 8 << 20


def test_a_jpeg_of_a_thousand_scans_is_refused():
    data = encode(Image.new('RGB', (64, 64)), 'JPEG', progressive=True)
    at = data.rindex(b'\xff\xda')
    record = {'image': data[:at] + data[at:-2] * 1000 + data[-2:], 'name': 'a.jpg'}
    with pytest.raises(BadImage, match=f'{image_limits.MAX_JPEG_SCANS} scans'):
        decode(record, 3)
    decode({'image': data, 'name': 'a.jpg'}, 3)


@pytest.mark.parametrize('chunk', ['zTXt', 'iCCP', 'iTXt'])
def test_compressed_text_of_a_png_is_not_unpacked_without_a_bound(chunk, allocations):
    packed = packed_zeros()
    body = {
        'zTXt': b'key\0\0' + packed,
        'iCCP': b'key\0\0' + packed,
        'iTXt': b'key\0\1\0\0\0' + packed,
    }[chunk]
    kind = chunk.encode()
    data = encode(Image.new('RGB', (8, 8)), 'PNG')
    whole = struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    tracemalloc.reset_peak()
    base = allocations()
    with contextlib.suppress(BadImage):
        decode({'image': data[:33] + whole + data[33:], 'name': 'a.png'}, 3)
    assert allocations() - base < 8 << 20
