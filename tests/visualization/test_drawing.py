import numpy as np
import pytest
from helpers.drawings import cells_of, titles_of
from PIL import Image

from mae_jax.visualization.drawing import (
    FONT_SIZE,
    MARGIN,
    RAMP,
    SCALE_WIDTH,
    color_scale,
    grid,
    heat,
    hide,
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize('height, width', [(8, 8), (8, 24), (64, 48), (224, 224)])
def test_images_stand_row_by_row_and_column_by_column(height, width):
    columns = {'one': noise(3, height, width, 3), 'two': noise(3, height, width, 3, seed=1)}
    picture = grid(columns)
    assert picture.dtype == np.uint8
    assert Image.fromarray(picture).mode == 'RGB'
    cells = cells_of(picture, 3, 2, height, width)
    np.testing.assert_array_equal(cells, np.stack(list(columns.values())))


@pytest.mark.parametrize('abreast', [2, 3])
def test_images_stand_abreast_each_with_all_its_columns(abreast):
    columns = {'one': noise(5, 8, 24, 3), 'two': noise(5, 8, 24, 3, seed=1)}
    parts = np.split(grid(columns, abreast=abreast), abreast, axis=1)
    for number, part in enumerate(parts):
        expected = grid({title: column[number::abreast] for title, column in columns.items()})
        np.testing.assert_array_equal(part[: len(expected)], expected)
        assert (part[len(expected) :] == 255).all()  # where there are no more images


@pytest.mark.parametrize('side, shown_side', [(8, 160), (28, 168), (64, 192), (224, 224)])
def test_small_images_are_enlarged_until_they_can_be_seen(side, shown_side):
    picture = grid({'': noise(1, side, side, 3)})
    assert picture.shape[1] == shown_side + 2 * MARGIN


def ink(titles):
    """bool: where something is written."""
    return titles.min(axis=-1) < 128


def test_each_title_stands_above_the_middle_of_its_own_column():
    columns = dict.fromkeys(['original', 'masked', ''], np.zeros((2, 64, 64, 3), np.uint8))
    first, second, third = ink(titles_of(grid(columns), 2, 3, 64, 64))
    for written in (first, second):
        places = np.flatnonzero(written.any(axis=0))
        left, right = places[0], written.shape[1] - 1 - places[-1]
        assert abs(left - right) <= 3 and left > MARGIN
        assert np.ptp(np.flatnonzero(written.any(axis=1))) >= FONT_SIZE / 2
    assert not third.any()
    assert (first != second).any()


def test_a_title_that_is_too_long_goes_on_below():
    black = np.zeros((1, 64, 64, 3), np.uint8)
    short = grid({'masked': black, 'reconstruction': black})
    long = grid({'masked': black, 'reconstruction of the rest, 62.5%': black})
    assert len(long) - len(short) == FONT_SIZE + MARGIN
    masked, wrapped = ink(titles_of(long, 1, 2, 64, 64))
    assert not wrapped[:, :MARGIN].any() and not wrapped[:, -MARGIN:].any()
    lines = np.array([half.any() for half in np.array_split(wrapped, 2)])
    assert lines.all()
    assert not masked[: len(masked) // 2 - 2].any()  # a short one stays beside its column


def test_a_caption_stands_above_the_titles_and_fits_the_width():
    columns = dict.fromkeys(['one', 'two'], noise(1, 64, 64, 3))
    without, caption = grid(columns), 'of the predictions that are drawn in the columns below'
    picture = grid(columns, caption)
    np.testing.assert_array_equal(picture[-len(without) :], without)
    written = ink(picture[: -len(without)])
    lines = np.array([half.any() for half in np.array_split(written, 2)])
    assert lines.all()  # two lines: it is too long for one
    assert not written[:, :MARGIN].any() and not written[:, -MARGIN:].any()
    assert written.any(axis=0).mean() > 0.5  # over both columns


def test_hidden_patches_are_grey_and_others_untouched():
    pixels = noise(1, 4, 6, 3)
    mask = np.array([[True, False, False, False, False, True]])
    picture = hide(pixels, mask, 2)
    expected = pixels.copy()
    expected[0, :2, :2] = 128
    expected[0, 2:, 4:] = 128
    np.testing.assert_array_equal(picture, expected)


def test_heat_goes_from_dark_to_light_up_to_the_largest_of_each_map():
    values = np.array([[[0, 1, 2], [3, 4, 1]], [[0, 0.1, 0.2], [0.3, 0.4, 0.1]]])
    picture = heat(values, 3)
    assert picture.shape == (2, 6, 9, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[0], picture[1])
    for (row, column), colour in zip([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], RAMP, strict=True):
        patch = picture[0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(patch, np.broadcast_to(colour, (3, 3, 3)))
    grey = np.asarray(Image.fromarray(np.uint8(RAMP)[None]).convert('L')).astype(int)
    assert (np.diff(grey) > 30).all()  # legible in grey, and by the colour-blind


def test_a_map_without_any_heat_is_dark():
    assert (heat(np.zeros((1, 2, 2)), 4) == RAMP[0]).all()


def test_maps_of_one_scale_have_its_colours():
    drawn = heat(np.array([[[0.0, 1.0]], [[2.0, 4.0]]]), 1, top=4.0)
    np.testing.assert_array_equal(drawn[:, 0], [[RAMP[0], RAMP[1]], [RAMP[2], RAMP[4]]])


def test_a_scale_shows_the_colours_between_its_numbers():
    strip = color_scale('error', 0.125, 600)
    assert strip.shape[1:] == (600, 3) and strip.dtype == np.uint8
    middle = strip[len(strip) // 2]
    start = np.flatnonzero((strip[1 - len(strip) // 4] == RAMP[0]).all(axis=-1))[0]
    bar = strip[len(strip) // 4, start : start + SCALE_WIDTH].astype(int)
    np.testing.assert_array_equal(bar[[0, -1]], [RAMP[0], RAMP[-1]])
    assert (np.diff(bar.sum(axis=-1)) >= 0).all()
    before, after = middle[:start], middle[start + SCALE_WIDTH :]
    assert ink(before).any() and ink(after).any()
    left, right = np.flatnonzero(ink(strip).any(axis=0))[[0, -1]]
    assert abs(left - (599 - right)) < 30
    assert (color_scale('error', 0.25, 600) != strip).any()
