"""Crops and resizes in C: the pixels of Pillow to the bit, and None for other files."""

import importlib
import io
import resource
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.images import encode, smooth_picture
from PIL import Image

from mae_jax.data.images import jpeg
from mae_jax.data.images import limits as image_limits

built = pytest.mark.skipif(not jpeg.is_built(), reason='the C module is not built')

KINDS = {
    '4:2:0': {'subsampling': '4:2:0'},
    '4:2:2': {'subsampling': '4:2:2'},
    '4:4:4': {'subsampling': '4:4:4'},
    '4:4:0': {'subsampling': '4:2:2', 'sampling': 0x12},
    '4:1:1': {'subsampling': '4:2:0', 'sampling': 0x41},
    '1 x 4': {'subsampling': '4:2:0', 'sampling': 0x14},
    'progressive': {'progressive': True},
    'progressive 4:4:4': {'progressive': True, 'subsampling': '4:4:4'},
    'optimised': {'optimize': True},
    'restart markers': {'restart_marker_blocks': 3},
    'RGB': {'keep_rgb': True},
    'low quality': {'quality': 5},
}


def picture(seed, width, height, mode='RGB'):
    """Draws a smooth picture with noise, so that no DCT coefficient is zero throughout."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(smooth_picture(seed, width, height)).astype(int)
    pixels = np.clip(pixels + rng.integers(-40, 41, pixels.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg_of(image, sampling=None, **how):
    file = io.BytesIO()
    image.save(file, 'JPEG', **{'quality': 90} | how)
    return resampled(file.getvalue(), sampling) if sampling else file.getvalue()


def resampled(data, sampling):
    """Changes the sampling factors in the header, to ones that Pillow cannot write."""
    at = frame_of(data)
    height, width = struct.unpack('>HH', data[at + 5 : at + 9])
    sides = []
    for side, shift in [(height, 0), (width, 4)]:
        old, new = data[at + 11] >> shift & 15, sampling >> shift & 15
        sides.append(-(-side // (8 * old)) * 8 * new - 3)
    edited = bytearray(data)
    edited[at + 5 : at + 9] = struct.pack('>HH', *sides)
    edited[at + 11] = sampling
    return bytes(edited)


def frame_of(data):
    return max(data.find(b'\xff\xc0\0\x11'), data.find(b'\xff\xc2\0\x11'))


def boxes(rng, width, height, count):
    """Yields random boxes: of single pixels, of whole sides, along every edge, and others."""
    for _ in range(count):
        w, h = (int(rng.choice([1, side, rng.integers(1, side + 1)])) for side in (width, height))
        left = int(rng.choice([0, width - w, rng.integers(width - w + 1)]))
        top = int(rng.choice([0, height - h, rng.integers(height - h + 1)]))
        yield left, top, w, h


def pillows_crop(data, channels, box, size):
    image = Image.open(io.BytesIO(data)).convert('RGB' if channels == 3 else 'L')
    left, top, width, height = box
    crop = image.crop((left, top, left + width, top + height))
    resized = crop.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(*size, channels)


@built
@pytest.mark.parametrize('kind', KINDS)
def test_a_crop_is_pillows_to_the_bit(kind):
    rng = np.random.default_rng(list(KINDS).index(kind))
    for seed, (width, height) in enumerate([(160, 120), (97, 131), (33, 17), (5, 9), (1, 1)]):
        data = jpeg_of(picture(seed, width, height), **KINDS[kind])
        width, height = Image.open(io.BytesIO(data)).size
        assert jpeg.jpeg_size(data, 3) == (width, height)
        for box in boxes(rng, width, height, 20):
            size = tuple(int(rng.choice([1, 16, side, rng.integers(1, 80)])) for side in box[:1:-1])
            ours = jpeg.crop_jpeg(data, 3, box, size)
            np.testing.assert_array_equal(ours, pillows_crop(data, 3, box, size))


@built
@pytest.mark.parametrize('kind', KINDS)
def test_a_whole_image_is_pillows_to_the_bit(kind):
    data = jpeg_of(picture(0, 96, 50), **KINDS[kind])
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    np.testing.assert_array_equal(jpeg.decode_jpeg(data, 3), theirs)


@built
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('sampling', [0x11, 0x22, 0x41])
def test_a_grey_jpeg_is_grey_or_its_grey_repeated(channels, sampling):
    rng = np.random.default_rng(0)
    data = bytearray(jpeg_of(picture(0, 83, 61, 'L')))
    data[data.index(b'\xff\xc0') + 11] = sampling  # ignored where there is one band
    data = bytes(data)
    for box in boxes(rng, 83, 61, 20):
        ours = jpeg.crop_jpeg(data, channels, box, (24, 40))
        np.testing.assert_array_equal(ours, pillows_crop(data, channels, box, (24, 40)))
    whole = pillows_crop(data, channels, (0, 0, 83, 61), (61, 83))
    np.testing.assert_array_equal(jpeg.decode_jpeg(data, channels), whole)


@built
def test_a_scan_for_each_band_is_read():
    data = one_scan_a_band(jpeg_of(picture(0, 64, 48), subsampling='4:4:4'))
    for box in boxes(np.random.default_rng(0), 64, 48, 20):
        ours = jpeg.crop_jpeg(data, 3, box, (20, 30))
        np.testing.assert_array_equal(ours, pillows_crop(data, 3, box, (20, 30)))


def one_scan_a_band(data):
    """Makes a JPEG of three bands, each of which is the same grey scan."""
    grey = jpeg_of(Image.open(io.BytesIO(data)).convert('L'))
    at = grey.index(b'\xff\xda')
    scan = grey[at + 10 : -2]
    frame = grey.index(b'\xff\xc0')
    bands = b''.join(bytes([band, 0x11, 0]) for band in (1, 2, 3))
    header = struct.pack('>HHB', 0xFFC0, 8 + 9, 8) + grey[frame + 5 : frame + 9] + b'\3' + bands
    scans = b''.join(
        struct.pack('>HHBBBBBB', 0xFFDA, 8, 1, band, 0, 0, 63, 0) + scan for band in (1, 2, 3)
    )
    return grey[:frame] + header + grey[frame + 2 + 11 : at] + scans + b'\xff\xd9'


@pytest.mark.parametrize('channels', [1, 3])
def test_a_resize_is_pillows_to_the_bit(channels):
    rng = np.random.default_rng(channels)
    for i in range(120):
        h, w, *size = (int(rng.choice([1, 8, rng.integers(1, 90)])) for _ in range(4))
        if i % 4 == 0:
            size[0] = h
        if i % 4 == 1:
            size[1] = w
        whole = rng.integers(0, 256, (h + 3, w + 5, channels), np.uint8)
        crop = whole[2 : h + 2, 1 : w + 1]
        image = Image.fromarray(crop[..., 0] if channels == 1 else crop)
        theirs = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
        ours = jpeg.resize(crop, tuple(size))
        np.testing.assert_array_equal(ours, theirs.reshape(*size, channels), f'{h} x {w} -> {size}')


def test_a_resize_reads_rows_in_any_order():
    whole = np.asarray(picture(0, 40, 30))
    for view in (whole[::-1], whole[::2], whole[:, ::-1], whole[:, ::2], whole[..., ::-1]):
        theirs = Image.fromarray(np.ascontiguousarray(view)).resize((24, 16), Image.BICUBIC)
        np.testing.assert_array_equal(jpeg.resize(view, (16, 24)), np.asarray(theirs))


@pytest.mark.parametrize('size', [(224, 224), (448, 448), (120, 300), (300, 120)])
def test_the_order_of_the_passes_is_pillows(size):
    """From version 13 on Pillow chooses the order by the sizes."""
    rng = np.random.default_rng(0)
    for shape in [(240, 182), (500, 375), (375, 500), (267, 200), (900, 8), (1201, 12)]:
        pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
        theirs = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(jpeg.resize(pixels, size), np.asarray(theirs))


PHOTOGRAPH = jpeg_of(picture(7, 100, 80))
LEFT_TO_PILLOW = {
    'empty': b'',
    'two bytes': b'\xff\xd8',
    'a PNG': encode(picture(0, 20, 20), 'PNG'),
    'CMYK': jpeg_of(picture(0, 20, 20, 'CMYK')),
    'cut off': PHOTOGRAPH[: len(PHOTOGRAPH) // 2],
    'without an end': PHOTOGRAPH[:-2],
    'cut off, then ended': PHOTOGRAPH[: len(PHOTOGRAPH) // 2] + b'\xff\xd9',
    'a header alone': PHOTOGRAPH[:300] + b'\xff\xd9',
    '12 bits': PHOTOGRAPH.replace(b'\xff\xc0\0\x11\x08', b'\xff\xc0\0\x11\x0c'),
    'arithmetic': PHOTOGRAPH.replace(b'\xff\xc0', b'\xff\xc9'),
    'lossless': PHOTOGRAPH.replace(b'\xff\xc0', b'\xff\xc3'),
    'too large': PHOTOGRAPH.replace(b'\0\x50\0\x64', b'\xff\x50\xff\x64'),
    'too many scans': PHOTOGRAPH[:-2] + 101 * b'\xff\xda' + b'\xff\xd9',
    'damaged': PHOTOGRAPH[:-40] + b'\xff\xd3' + PHOTOGRAPH[-38:],
}


@built
@pytest.mark.parametrize('kind', LEFT_TO_PILLOW)
def test_what_it_does_not_read_is_left_to_pillow(kind, capfd):
    data = LEFT_TO_PILLOW[kind]
    assert jpeg.decode_jpeg(data, 3) is None
    assert jpeg.crop_jpeg(data, 3, (0, 60, 20, 20), (8, 8)) is None
    above = jpeg.crop_jpeg(data, 3, (0, 0, 20, 20), (8, 8))
    if above is not None:
        np.testing.assert_array_equal(above, pillows_crop(data, 3, (0, 0, 20, 20), (8, 8)))
    assert (above is not None) == (kind in ('cut off, then ended', 'damaged'))
    assert capfd.readouterr() == ('', '')


@built
def test_a_progressive_file_without_its_last_scans_is_left_to_pillow():
    data = jpeg_of(picture(0, 64, 48), progressive=True)
    assert jpeg.decode_jpeg(data, 3) is not None
    unfinished = data[: data.rindex(b'\xff\xda')] + b'\xff\xd9'
    assert jpeg.jpeg_size(unfinished, 3) == (64, 48)
    assert jpeg.decode_jpeg(unfinished, 3) is None
    assert jpeg.crop_jpeg(unfinished, 3, (0, 0, 20, 20), (8, 8)) is None


@built
def test_zeros_after_the_end_are_padding():
    assert jpeg.jpeg_size(PHOTOGRAPH + bytes(100), 3) == (100, 80)
    assert jpeg.jpeg_size(PHOTOGRAPH + b'more', 3) is None


@built
def test_colour_becomes_grey_only_in_pillow():
    for function in (jpeg.jpeg_size, jpeg.decode_jpeg):
        assert function(PHOTOGRAPH, 1) is None
    assert jpeg.crop_jpeg(PHOTOGRAPH, 1, (0, 0, 20, 20), (8, 8)) is None
    assert jpeg.jpeg_size(PHOTOGRAPH, 4) is None


@built
@pytest.mark.parametrize(
    'box', [(-1, 0, 10, 10), (0, 0, 0, 10), (91, 0, 10, 10), (0, 71, 10, 10), (0, 0, 101, 80)]
)
def test_a_box_that_is_not_in_the_picture_is_left_to_pillow(box):
    assert jpeg.crop_jpeg(PHOTOGRAPH, 3, box, (8, 8)) is None


@built
def test_a_result_that_is_too_large_is_left_to_pillow():
    assert jpeg.crop_jpeg(PHOTOGRAPH, 3, (0, 0, 9, 9), (2, image_limits.MAX_IMAGE_PIXELS)) is None


@built
def test_threads_do_not_disturb_each_other():
    files = [jpeg_of(picture(seed, 90 + seed, 70, 'RGB')) for seed in range(8)]
    jobs = [(data, (seed, 9, 60, 50), (32, 32)) for seed, data in enumerate(files)] * 25
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: jpeg.crop_jpeg(job[0], 3, *job[1:]), jobs))
    expected = [pillows_crop(data, 3, box, size) for data, box, size in jobs[:8]]
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[i % 8])


@built
def test_damaged_files_give_pillows_pixels_or_none_and_leak_no_memory():
    rng = np.random.default_rng(0)
    files = [jpeg_of(picture(0, 100, 80), **KINDS[kind]) for kind in ('4:2:0', 'progressive')]

    def damaged(i):
        data = bytearray(files[i % 2])
        for at in rng.integers(2, len(data) - 2, rng.integers(1, 4)):
            data[at] = rng.integers(256)
        return bytes(data)

    read = 0
    for i in range(800):
        data = damaged(i)
        ours = jpeg.crop_jpeg(data, 3, (30, 20, 50, 40), (32, 32))
        jpeg.resize(np.zeros((300, 300, 3), np.uint8), (30, 30))
        if ours is not None and i % 10 == 0:
            np.testing.assert_array_equal(ours, pillows_crop(data, 3, (30, 20, 50, 40), (32, 32)))
            read += 1
        if i == 200:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read > 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8_000  # KiB


def test_without_the_module_pillow_does_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mae_jax.data.images._jpeg', None)
    monkeypatch.delattr('mae_jax.data.images._jpeg', raising=False)
    try:
        importlib.reload(jpeg)
        assert not jpeg.is_built()
        assert jpeg.jpeg_size(PHOTOGRAPH, 3) is None
        assert jpeg.decode_jpeg(PHOTOGRAPH, 3) is None
        assert jpeg.crop_jpeg(PHOTOGRAPH, 3, (0, 0, 20, 20), (8, 8)) is None
        for channels in (1, 3):
            test_a_resize_is_pillows_to_the_bit(channels)
    finally:
        monkeypatch.undo()
        importlib.reload(jpeg)
