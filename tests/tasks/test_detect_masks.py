"""Masks at the size of the original: by hand, and as pycocotools decodes them."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mae_jax.tasks.detect_masks import encode, has_area, paste, to_original


def by_hand(mask: np.ndarray, box: tuple, size: tuple[int, int]) -> np.ndarray:
    """Pixel by pixel: bilinear between the four cells around its centre, 0 outside."""
    x0, y0, x1, y1 = box
    cells = np.pad(mask.astype(np.float64), 1)
    values = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v = (y + 0.5 - y0) / (y1 - y0) * len(mask) - 0.5
            u = (x + 0.5 - x0) / (x1 - x0) * len(mask) - 0.5
            top, left = int(np.floor(v)), int(np.floor(u))
            for j, b in ((top, 1 - v + top), (top + 1, v - top)):
                for i, a in ((left, 1 - u + left), (left + 1, u - left)):
                    if -1 <= j <= len(mask) and -1 <= i <= len(mask):
                        values[y, x] += a * b * cells[j + 1, i + 1]
    return values


@pytest.mark.parametrize(
    'box',
    [
        (2.3, 4.1, 17.8, 20.0),  # smaller than the mask
        (0.0, 0.0, 30.0, 24.0),  # all of the image
        (10.2, 3.0, 10.9, 3.4),  # less than a pixel
        (21.0, 15.5, 30.0, 24.0),  # at the lower right
    ],
)
def test_a_mask_is_enlarged_bilinearly_within_its_box(box):
    mask = np.random.default_rng(0).uniform(size=(7, 7)).astype(np.float32)
    pasted, values = paste(mask, np.float32(box), (24, 30)), by_hand(mask, box, (24, 30))
    clear = np.abs(values - 0.5) > 1e-5  # no rounding decides
    assert pasted.dtype == np.uint8 and clear.mean() > 0.95
    np.testing.assert_array_equal(pasted[clear], (values >= 0.5)[clear])


def test_a_full_mask_fills_its_box():
    pasted = paste(np.ones((28, 28), np.float32), np.float32([3, 5, 19, 12]), (20, 24))
    expected = np.zeros((20, 24), np.uint8)
    expected[5:12, 3:19] = 1
    np.testing.assert_array_equal(pasted, expected)


def test_runs_are_decoded_as_the_mask_they_are_of():
    mask = (np.random.default_rng(1).uniform(size=(13, 17)) > 0.6).astype(np.uint8)
    runs = encode(mask)
    assert runs['size'] == [13, 17] and isinstance(runs['counts'], str)
    np.testing.assert_array_equal(coco_mask.decode(runs), mask)


def test_boxes_are_scaled_to_the_original_and_clipped():
    boxes = np.float32([[10, 20, 50, 60], [-4, 90, 300, 120], [150, 10, 160, 20]])
    original = to_original(boxes, (100, 150), (200, 600))
    np.testing.assert_allclose(
        original, [[40, 40, 200, 120], [0, 180, 600, 200], [600, 20, 600, 40]]
    )
    np.testing.assert_array_equal(has_area(original), [True, True, False])
