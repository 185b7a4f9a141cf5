"""Photometric distortion: mmsegmentation's operations, written out pixel by pixel."""

import collections
import colorsys

import numpy as np
import pytest
from helpers.images import smooth_picture
from PIL import Image

from mae_jax.data.transforms.photometric import PhotometricDistortion, distort
from mae_jax.errors import UserError

PICTURE = smooth_picture(0, 24, 16)
PIXELS = np.asarray(PICTURE).astype(int)


def cut(values):
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('value', [-32.0, -0.5, 0.0, 17.25, 32.0])
def test_brightness_is_added(value):
    ours = np.asarray(distort(PICTURE, 'brightness', value))
    np.testing.assert_array_equal(ours, cut(PIXELS + value))


@pytest.mark.parametrize('factor', [0.5, 0.83, 1.0, 1.31, 1.5])
def test_contrast_multiplies(factor):
    ours = np.asarray(distort(PICTURE, 'contrast', factor)).astype(int)
    expected = cut(PIXELS * factor).astype(int)
    assert abs(ours - expected).max() <= 1  # Pillow multiplies in float32
    assert (ours == expected).mean() > 0.99


def hsv_changed(change):
    rows = []
    for red, green, blue in PIXELS.reshape(-1, 3) / 255:
        rows.append(colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(red, green, blue))))
    return 255 * np.array(rows).reshape(PIXELS.shape)


@pytest.mark.parametrize('factor', [0.5, 0.9, 1.0, 1.2, 1.5])
def test_saturation_is_multiplied_in_hsv(factor):
    expected = hsv_changed(lambda h, s, v: (h, min(s * factor, 1.0), v))
    ours = np.asarray(distort(PICTURE, 'saturation', factor)).astype(int)
    assert abs(ours - expected).max() <= 7 and abs(ours - expected).mean() < 1  # of 8 bits each


@pytest.mark.parametrize('turns', [-18 / 180, -3 / 180, 0.0, 17 / 180])
def test_hue_is_shifted_in_hsv(turns):
    expected = hsv_changed(lambda h, s, v: ((h + turns) % 1, s, v))
    ours = np.asarray(distort(PICTURE, 'hue', turns)).astype(int)
    assert abs(ours - expected).max() <= 12 and abs(ours - expected).mean() < 1.5


def test_the_operations_and_their_strengths_are_mmsegmentations():
    rng, seen, values = (
        np.random.default_rng(0),
        collections.Counter(),
        collections.defaultdict(list),
    )
    for _ in range(8000):
        drawn = PhotometricDistortion().draw(rng)
        seen[tuple(op for op, _ in drawn)] += 1
        for op, value in drawn:
            values[op].append(value)
    ranges = dict(brightness=(-32, 32), contrast=(0.5, 1.5), saturation=(0.5, 1.5))
    for op, (low, high) in ranges.items():
        shares = (np.array(values[op]) - low) / (high - low)
        assert abs(np.histogram(shares, 4, (0, 1))[0] / 4000 - 0.25).max() < 0.02, op
    assert set(np.rint(np.array(values['hue']) * 180)) == set(range(-18, 18))
    for op in (*ranges, 'hue'):
        assert abs(len(values[op]) / 8000 - 0.5) < 0.02
    orders = ('brightness', 'contrast', 'saturation', 'hue'), ('brightness', 'saturation', 'hue')
    assert seen[orders[0]] / 8000 == pytest.approx(1 / 32, abs=0.01)
    assert seen[(*orders[1], 'contrast')] / 8000 == pytest.approx(1 / 32, abs=0.01)
    assert seen[orders[1]] / 8000 == pytest.approx(1 / 16, abs=0.01)
    assert seen[()] / 8000 == pytest.approx(1 / 16, abs=0.01)
    assert all(ops[0] == 'brightness' for ops in seen if 'brightness' in ops)


def test_the_operations_that_are_drawn_are_applied_in_their_order(monkeypatch):
    drawn = [('hue', 0.1), ('brightness', 20.0), ('contrast', 1.5)]
    monkeypatch.setattr(PhotometricDistortion, 'draw', lambda self, rng: drawn)
    expected = PICTURE
    for op, value in drawn:
        expected = distort(expected, op, value)
    ours = PhotometricDistortion()(PICTURE, None)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))
    backwards = distort(distort(distort(PICTURE, *drawn[2]), *drawn[1]), *drawn[0])
    assert (np.asarray(ours) != np.asarray(backwards)).any()


def test_a_grey_picture_has_brightness_and_contrast_alone():
    grey = PICTURE.convert('L')
    for op in ('saturation', 'hue'):
        assert distort(grey, op, 0.5).tobytes() == grey.tobytes()
    np.testing.assert_array_equal(
        np.asarray(distort(grey, 'brightness', 9.5)), cut(np.asarray(grey) + 9.5)
    )


def test_other_pictures_are_refused():
    with pytest.raises(UserError, match=r'Photometric distortion .* mode RGBA: set dataset\.aug'):
        PhotometricDistortion()(Image.new('RGBA', (2, 2)), np.random.default_rng(0))
