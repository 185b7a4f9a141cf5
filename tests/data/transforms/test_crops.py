"""The random boxes of training crops, and cropping before resizing."""

import math

import numpy as np
import pytest
from helpers.images import smooth_picture
from PIL import Image

from mae_jax.data.transforms import crops

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def test_resizing_does_not_look_outside_the_crop():
    picture = smooth_picture(1, 80, 60)
    pixels = np.array(picture)
    box = (10, 5, 40, 30)
    inside = crops.resize_crop(picture, box, (16, 16))
    outside = np.ones(pixels.shape[:2], bool)
    outside[5:35, 10:50] = False
    pixels[outside] = 255 - pixels[outside]
    np.testing.assert_array_equal(crops.resize_crop(Image.fromarray(pixels), box, (16, 16)), inside)


def test_share_ratio_and_position_of_boxes_are_distributed_as_documented():
    rng = np.random.default_rng(0)
    boxes = np.array(
        [crops.random_resized_crop_box(1000, 1000, rng, SCALE, RATIO) for _ in range(4000)]
    )
    left, top, width, height = boxes.T
    assert (boxes >= 0).all() and (left + width <= 1000).all() and (top + height <= 1000).all()
    share, log_ratio = width * height / 1e6, np.log(width / height)
    assert 0.2 - 1e-3 < share.min() < 0.22
    assert share.max() <= 1
    assert abs(log_ratio).max() <= math.log(4 / 3) + 0.005
    assert abs(log_ratio.mean()) < 0.01  # log-uniform: symmetric
    # The share is uniform up to where not every ratio fits into the square.
    quarters, _ = np.histogram(share, bins=np.linspace(0.2, 0.74, 5))
    assert abs(quarters / quarters.mean() - 1).max() < 0.12
    movable = width < 990
    assert abs((left[movable] / (1000 - width[movable])).mean() - 0.5) < 0.02


def test_a_clamped_crop_is_drawn_once_and_cut_to_the_image():
    clamped = 0
    for index in range(2000):
        box = crops.clamped_crop_box(
            500, 375, np.random.default_rng((0, 1, 0, index)), (0.08, 1.0), RATIO
        )
        rng = np.random.default_rng((0, 1, 0, index))
        area = 500 * 375 * rng.uniform(0.08, 1.0)
        aspect = np.exp(rng.uniform(np.log(RATIO[0]), np.log(RATIO[1])))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        clamped += w > 500 or h > 375
        w, h = min(w, 500), min(h, 375)
        top = rng.integers(0, 375 - h + 1)
        assert box == (rng.integers(0, 500 - w + 1), top, w, h)
    assert abs(clamped / 2000 - 0.26) < 0.03


@pytest.mark.parametrize('width_height', [(1, 1), (2, 1), (1, 300), (400, 2)])
def test_a_clamped_crop_of_a_tiny_or_thin_image_is_within_it(width_height):
    for index in range(50):
        left, top, w, h = crops.clamped_crop_box(
            *width_height, np.random.default_rng(index), (0.08, 1.0), RATIO
        )
        assert w > 0 and h > 0 and left >= 0 and top >= 0
        assert left + w <= width_height[0] and top + h <= width_height[1]


def test_alpha_does_not_bleed_into_the_colours_of_four_bands():
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 8:, 3] = 255
    ours = crops.resize_crop(rgba, (0, 0, 16, 16), (8, 8))
    np.testing.assert_array_equal(ours[..., 0], 200)
