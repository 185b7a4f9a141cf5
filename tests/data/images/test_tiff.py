"""TIFFs by their tags: bands, photometric meaning, extra samples, planes, pages, orientation."""

import io
import itertools
import random

import numpy as np
import pytest
import tifffile
from helpers.images import encode
from PIL import Image, ImageOps

from mae_jax.data.images.decode import decode
from mae_jax.errors import UserError

SHAPE = 12, 17
DTYPES = ['u1', 'u2', 'u4', 'i1', 'i2', 'i4', 'f2', 'f4', 'f8']
LAYOUTS = {  # photometric interpretation, samples, extra samples
    'grey': ('minisblack', 1, None),
    'inverted grey': ('miniswhite', 1, None),
    'two bands': ('minisblack', 2, (0,)),
    'grey and premultiplied alpha': ('minisblack', 2, (1,)),
    'four bands': ('minisblack', 4, (0, 0, 0)),
    'colours': ('rgb', 3, None),
    'colours and infrared': ('rgb', 4, (0,)),
    'colours and premultiplied alpha': ('rgb', 4, (1,)),
    'colours and alpha': ('rgb', 4, (2,)),
    'colours and two bands': ('rgb', 5, (0, 0)),
    'colours, premultiplied alpha, band': ('rgb', 5, (1, 0)),
    'colours, alpha, band': ('rgb', 5, (2, 0)),
    'seven bands': ('minisblack', 7, (0,) * 6),
}
ORIENTATIONS = 1, 3, 6, 7


def load(data, channels=3, **options):
    return np.asarray(decode({'image': data, 'name': 'some/file'}, channels, **options))


def numbers(dtype, samples, seed=0):
    rng = np.random.default_rng(seed)
    shape = (*SHAPE, samples)
    if dtype[0] == 'f':
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def write_tiff(pages, *, orientation=1, overviews=0, **options) -> bytes:
    """Writes arrays [H, W, C] as pages of their own, then reduced images of the first."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        separate = options.get('planarconfig') == 'separate'
        for page in pages:
            page = np.moveaxis(page, -1, 0) if separate else page
            tag = (274, 'H', 1, orientation, True)
            file.write(page.squeeze(), extratags=[tag], metadata=None, **options)
        for i in range(1, overviews + 1):
            small = pages[0][i:, i:]
            small = np.moveaxis(small, -1, 0) if separate else small
            file.write(small.squeeze(), subfiletype=1, metadata=None, **options)
    return buffer.getvalue()


def turned(array, orientation):
    """Turns [H, W, C] by Pillow: an image of the positions of its pixels."""
    positions = np.arange(array.shape[0] * array.shape[1], dtype=np.int32).reshape(array.shape[:2])
    exif = Image.Exif()
    exif[274] = orientation
    picture = Image.open(io.BytesIO(encode(Image.fromarray(positions), 'TIFF')))
    picture.load()
    picture.info['exif'] = exif.tobytes()
    picture.getexif()[274] = orientation
    return array.reshape(-1, array.shape[-1])[np.asarray(ImageOps.exif_transpose(picture))]


@pytest.mark.parametrize('share', [6, pytest.param(None, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_the_first_page_is_read_as_tifffile_reads_it(dtype, layout, share):
    photometric, samples, extra = LAYOUTS[layout]
    pages = [numbers(dtype, samples, seed) for seed in range(samples if samples > 1 else 3)]
    planes = ('contig', 'separate') if samples > 1 else (None,)
    cases = list(
        itertools.product(
            planes,
            (None, 'zlib', 'lzma'),
            ((1, 0), (len(pages), 0), (1, samples - 1 or 2)),
            ORIENTATIONS,
        )
    )
    random.Random(f'{dtype} {layout}').shuffle(cases)
    for planar, compression, (count, overviews), orientation in cases[:share]:
        data = write_tiff(
            pages[:count],
            orientation=orientation,
            overviews=overviews,
            photometric=photometric,
            extrasamples=extra,
            planarconfig=planar,
            compression=compression,
            **({'predictor': True} if compression == 'zlib' and dtype[0] != 'f' else {}),
        )
        expected = tifffile.imread(io.BytesIO(data), key=0)
        if planar == 'separate':
            expected = np.moveaxis(expected, 0, -1)
        expected = expected.reshape(*SHAPE, samples)
        np.testing.assert_array_equal(expected, pages[0])  # the oracle reads what was written
        if photometric == 'miniswhite' and dtype[0] == 'u':
            expected = np.iinfo(dtype).max - expected
        loaded = load(data, samples)
        assert loaded.dtype == expected.dtype
        np.testing.assert_array_equal(loaded.reshape(expected.shape), expected)
        upright = load(data, samples, apply_exif=True)
        expected = turned(expected, orientation)
        np.testing.assert_array_equal(upright.reshape(expected.shape), expected)
        bands = tuple(range(samples))[::-2]
        chosen = load(data, len(bands), bands=bands, apply_exif=True)
        np.testing.assert_array_equal(
            chosen.reshape(*expected.shape[:2], len(bands)), expected[..., bands]
        )


MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
METHODS = {
    '1': (None, 'group3', 'group4', 'packbits'),
    'L': (None, 'tiff_lzw', 'tiff_deflate', 'packbits', 'jpeg'),
    'RGB': (None, 'tiff_lzw', 'tiff_deflate', 'packbits', 'jpeg'),
}


@pytest.mark.parametrize('mode', MODES)
def test_pictures_are_read_as_pillow_reads_their_first_page(mode):
    rgba = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    picture = Image.fromarray(rgba)
    picture = picture.convert(mode) if mode in ('LA', 'RGBA') else picture.convert('RGB')
    picture = picture.quantize(16) if mode == 'P' else picture.convert(mode)
    others = [picture.rotate(180), picture.resize((8, 8))]
    for method, pages, orientation in itertools.product(
        METHODS.get(mode, (None, 'tiff_lzw')), ([], others[:1] * 2, others), ORIENTATIONS
    ):
        options = dict(compression=method, save_all=True, append_images=pages)
        options = {name: value for name, value in options.items() if value is not None}
        plain = encode(picture, 'TIFF', **options)
        data = encode(picture, 'TIFF', tiffinfo={274: orientation}, **options)
        for channels, target in {1: 'L', 3: 'RGB'}.items():
            expected = np.asarray(Image.open(io.BytesIO(plain)).convert(target))
            np.testing.assert_array_equal(load(data, channels), expected)
            expected = turned(expected.reshape(16, 24, channels), orientation)
            upright = load(data, channels, apply_exif=True)
            np.testing.assert_array_equal(upright.reshape(expected.shape), expected)


@pytest.mark.parametrize('extra', [0, 1, 2])
@pytest.mark.parametrize('dtype', ['u1', 'u2'])
def test_colours_of_a_file_of_more_bands_are_neither_divided_nor_blended(dtype, extra):
    pixels = numbers(dtype, 4)
    data = write_tiff([pixels], photometric='rgb', extrasamples=(extra,))
    np.testing.assert_array_equal(load(data, 3), pixels[..., :3])


def test_compression_that_only_pillow_knows_does_not_lose_the_fourth_band():
    rgba = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    data = encode(Image.fromarray(rgba), 'TIFF', compression='tiff_lzw')
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        at = tiff.pages[0].tags[338].valueoffset
        assert tiff.pages[0].extrasamples == (2,)
    for extra in (0, 1):
        tagged = data[:at] + bytes([extra, 0]) + data[at + 2 :]
        np.testing.assert_array_equal(load(tagged, 4), rgba)
        np.testing.assert_array_equal(load(tagged, 3), rgba[..., :3])
        np.testing.assert_array_equal(load(tagged, 1, bands=(3,)), rgba[..., 3])


def test_palette_and_white_of_a_file_with_as_many_pages_as_bands():
    numbers = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    palette = np.zeros((3, 256), np.uint16)
    palette[0] = 65535  # every colour is red
    data = write_tiff([numbers[..., None]] * 3, photometric='palette', colormap=palette)
    np.testing.assert_array_equal(load(data), np.broadcast_to((255, 0, 0), (4, 4, 3)))
    deep = np.zeros((3, 65536), np.uint16)
    deep[1] = 51400  # 200 * 257
    wide = write_tiff([numbers[..., None].astype('u2')], photometric='palette', colormap=deep)
    np.testing.assert_array_equal(load(wide), np.broadcast_to((0, 200, 0), (4, 4, 3)))
    white = write_tiff([np.zeros((4, 4, 1), 'u1')], overviews=2, photometric='miniswhite')
    assert (load(white) == 255).all()


@pytest.mark.parametrize('dtype', ['u1', 'u2', 'f4'])
def test_grey_pages_are_bands_where_the_file_says_so_or_cannot_be_a_picture(dtype):
    pages = [numbers(dtype, 1, seed) for seed in range(3)]
    stack = np.concatenate(pages, -1)
    anonymous = write_tiff(pages, photometric='minisblack')
    described = io.BytesIO()
    tifffile.imwrite(described, np.moveaxis(stack, -1, 0), photometric='minisblack')
    imagej = io.BytesIO()
    tifffile.imwrite(imagej, np.moveaxis(stack, -1, 0), imagej=True)
    for data in (described.getvalue(), imagej.getvalue()):
        np.testing.assert_array_equal(load(data, 3), stack)
        np.testing.assert_array_equal(load(data, 2, bands=(2, 0)), stack[..., [2, 0]])
    expected = np.repeat(pages[0], 3, -1) if dtype == 'u1' else stack
    np.testing.assert_array_equal(load(anonymous, 3), expected)
    np.testing.assert_array_equal(load(anonymous, 1).reshape(pages[0].shape), pages[0])


def test_packed_bits_are_read_with_imagecodecs_or_name_it():
    wide, rows = 8, 4
    values = np.random.default_rng(0).integers(0, 4096, (rows, wide * 3), np.uint16)
    packed = np.stack(
        [values[:, ::2] >> 4, (values[:, ::2] & 15) << 4 | values[:, 1::2] >> 8, values[:, 1::2]],
        -1,
    ).astype(np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((rows, wide, 3), 'u2'), photometric='rgb', metadata=None)
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as tiff:
        page = tiff.pages[0]
        at = page.dataoffsets[0]
        places = page.tags[258].valueoffset, page.tags[279].valueoffset
    data[places[0] : places[0] + 6] = np.full(3, 12, '<u2').tobytes()
    data[places[1] : places[1] + 4] = np.array([packed.size], '<u4').tobytes()
    data[at : at + packed.size] = packed.tobytes()
    data = bytes(data[: at + packed.size])
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r'some/file.*12 bits.*pip install imagecodecs'):
            load(data)
    else:
        np.testing.assert_array_equal(load(data), values.reshape(rows, wide, 3))


@pytest.mark.parametrize('mode', ['F', 'I;16'])
def test_deep_grey_of_a_compression_that_only_pillow_knows_is_read(mode):
    array = np.random.default_rng(0).integers(0, 9, (8, 9)).astype('f4' if mode == 'F' else 'u2')
    data = encode(Image.fromarray(array), 'TIFF', compression='tiff_lzw')
    loaded = load(data, 1)
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded[..., 0], array)


def test_numbers_of_a_compression_that_needs_imagecodecs_name_it():
    array = np.random.default_rng(0).integers(0, 9, (8, 9), np.int32)
    data = encode(Image.fromarray(array), 'TIFF', compression='tiff_lzw')
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r'some/file.*LZW.*pip install imagecodecs'):
            load(data, 1)
    else:
        np.testing.assert_array_equal(load(data, 1)[..., 0], array)


@pytest.mark.parametrize('kind', [1, 2])  # a reduced image, a page of a document
def test_pages_that_are_tagged_as_something_else_are_no_bands(kind):
    pages = [numbers('f4', 1, seed).squeeze() for seed in range(3)]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for page, subfiletype in zip(pages, (kind & 2, kind, kind), strict=True):
            file.write(page, subfiletype=subfiletype, metadata=None, photometric='minisblack')
    loaded = load(buffer.getvalue(), 3)
    np.testing.assert_array_equal(loaded, np.repeat(pages[0][..., None], 3, -1))
