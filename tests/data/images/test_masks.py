"""Masks: the number of a class for every pixel, from the files that users have."""

import io

import numpy as np
import pytest
from helpers.images import encode
from PIL import Image

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.masks import MaskValues, read_mask
from mae_jax.errors import UserError

NUMBERS = np.array([[0, 1, 2, 7], [255, 3, 0, 1], [5, 5, 6, 6]], np.uint8)


def palette(numbers):
    picture = Image.fromarray(numbers, 'P')
    picture.putpalette([(i * step) % 256 for i in range(256) for step in (3, 5, 7)])
    return picture


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (encode(Image.fromarray(NUMBERS), 'PNG'), NUMBERS),
        (encode(palette(NUMBERS), 'PNG'), NUMBERS),
        (encode(Image.fromarray(NUMBERS.astype(np.uint16) * 40), 'PNG'), NUMBERS * np.int64(40)),
        (encode(Image.fromarray(NUMBERS > 2), 'PNG'), NUMBERS > 2),
        (encode(Image.fromarray(NUMBERS), 'BMP'), NUMBERS),
        (encode(Image.fromarray(NUMBERS), 'TIFF'), NUMBERS),
        (npy(NUMBERS.astype(np.int32)), NUMBERS),
        (NUMBERS.astype(np.int64), NUMBERS),
        (NUMBERS[..., None], NUMBERS),
        (NUMBERS > 2, NUMBERS > 2),
    ],
    ids=['L', 'P', 'I;16', '1', 'bmp', 'tiff', 'npy', 'int64', 'one band', 'bool'],
)
def test_the_numbers_of_a_mask_are_those_that_are_stored(content, expected):
    mask = read_mask(content, 'm.png')
    assert mask.dtype.kind in 'iu'
    np.testing.assert_array_equal(mask, expected)


def test_the_kinds_of_png_are_the_ones_meant():
    kinds = [Image.fromarray(NUMBERS), palette(NUMBERS), Image.fromarray(NUMBERS.astype(np.uint16))]
    modes = [Image.open(io.BytesIO(encode(picture, 'PNG'))).mode for picture in kinds]
    assert modes == ['L', 'P', 'I;16']


@pytest.mark.parametrize(
    ('content', 'error', 'message'),
    [
        (
            encode(Image.new('RGB', (3, 2)), 'PNG'),
            UserError,
            'is an RGB mask, .*convert it, such',
        ),
        (encode(Image.new('RGBA', (3, 2)), 'PNG'), UserError, 'is an RGB mask'),
        (
            encode(Image.new('LA', (3, 2)), 'PNG'),
            UserError,
            r'is a mask of shape \(2, 3, 2\),.* one band',
        ),
        (encode(Image.new('L', (3, 2)), 'JPEG'), UserError, 'is a JPEG, which changes'),
        (np.zeros((2, 3), np.float32), UserError, 'is a mask of float32: save whole numbers'),
        (b'nothing', BadImage, 'cannot be read as a mask: not an image of a known format'),
        (encode(Image.fromarray(NUMBERS), 'PNG')[:50], BadImage, 'cannot be read as a mask'),
    ],
    ids=['RGB', 'RGBA', 'LA', 'JPEG', 'float', 'no image', 'cut off'],
)
def test_what_is_no_mask_is_refused_in_one_sentence_with_its_name(content, error, message):
    with pytest.raises(error, match=rf'^m\.png {message}') as raised:
        read_mask(content, 'm.png')
    assert type(raised.value) is error
    assert str(raised.value).endswith('.') and '\n' not in str(raised.value)


def test_the_conversion_of_an_rgb_mask_gives_its_indices():
    colours = np.array([[0, 0, 0], [128, 64, 128], [70, 70, 70]], np.uint8)
    numbers = np.array([[0, 1], [2, 1]])
    rgb = Image.fromarray(colours[numbers])
    with pytest.raises(UserError) as raised:
        read_mask(encode(rgb, 'PNG'), 'm.png')
    code = str(raised.value).partition('such as by ')[2].rstrip('.')
    converted = eval(code, {'np': np, 'Image': Image, 'rgb': rgb, 'colours': colours})
    assert converted.mode == 'L'
    np.testing.assert_array_equal(np.asarray(converted), numbers)


def test_values_become_classes_and_what_is_none_becomes_255():
    mask = np.array([[0, 1, 3], [255, 9, 2]], np.uint8)
    classes = MaskValues(4, (255, 9)).classes(mask, 'm')
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, [[0, 1, 3], [255, 255, 2]])


def test_with_reduce_zero_label_zero_is_none_and_one_the_first_class():
    """As mmsegmentation: what was 0 or 255 is 255, all others are one less."""
    mask = np.array([[0, 1, 150, 255]], np.uint8)
    classes = MaskValues(150, reduce_zero_label=True).classes(mask, 'm')
    np.testing.assert_array_equal(classes, [[255, 0, 149, 255]])


def test_more_than_255_classes_keep_their_numbers():
    mask = np.array([[0, 255, 256, 846, 65535]], np.uint16)
    values = MaskValues(847, (65535,))
    classes = values.classes(mask, 'm')
    assert classes.dtype == np.int32
    np.testing.assert_array_equal(classes, [[0, 255, 256, 846, 65535]])
    assert values.none == 65535


def test_only_what_counts_is_below_the_number_of_classes():
    for count in (2, 255, 256, 65_535):
        values = MaskValues(count, (70_000,))
        classes = values.classes(np.array([[0, count - 1, 70_000]], np.int64), 'm')
        np.testing.assert_array_equal(classes < count, [[True, True, False]])


@pytest.mark.parametrize(
    ('values', 'number', 'message'),
    [
        (MaskValues(4), 9, r'the value 9 .* 4 classes are 0 to 3: .* add 9 to dataset\.ignored'),
        (MaskValues(4), 4, r'set dataset\.reduce_zero_label=True if 0 means no class'),
        (MaskValues(4, reduce_zero_label=True), 5, r'the value 5 .* classes are 1 to 4'),
        (MaskValues(4, ()), 255, 'the value 255'),
        (MaskValues(4), -1, 'the value -1'),
    ],
)
def test_a_value_beyond_the_classes_is_named_with_its_place(values, number, message):
    mask = np.zeros((3, 4), np.int32)
    mask[1, 2] = number
    with pytest.raises(UserError, match=r'^m\.png has .*row 1, column 2.*') as raised:
        values.classes(mask, 'm.png')
    assert raised.match(message)


def test_the_largest_of_several_unknown_values_is_named_where_it_is():
    mask = np.array([[7, 0], [0, 9]])
    with pytest.raises(UserError, match='the value 9 in row 1, column 1, and 1 other pixel beyond'):
        MaskValues(4).classes(mask, 'm.png')


@pytest.mark.parametrize(
    'fields',
    [
        dict(num_classes=256),
        dict(num_classes=255, reduce_zero_label=True),
        dict(num_classes=4, ignored=(3,)),
    ],
)
def test_the_value_of_a_class_cannot_be_ignored(fields):
    value = fields.get('ignored', (255,))[0]
    with pytest.raises(UserError, match=rf'dataset\.ignored={value} is the value of a class'):
        MaskValues(**fields)
    MaskValues(**fields | {'ignored': (fields['num_classes'] + 1,)})


@pytest.mark.parametrize('count', [0, 1, 65_536])
def test_a_number_of_classes_that_cannot_be_is_refused(count):
    with pytest.raises(UserError, match=rf'num_classes={count} must be from 2'):
        MaskValues(count)
