"""The crop on the device against Pillow's."""

import jax
import numpy as np
import pytest
from PIL import Image

from mae_jax.tasks import preprocess

crop_and_resize = jax.jit(preprocess.crop_and_resize, static_argnums=2)


def picture(width: int, height: int) -> np.ndarray:
    noise = np.random.default_rng(width).integers(0, 256, (12, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def on_canvas(pixels: np.ndarray, side: int) -> np.ndarray:
    """What is not the picture is noise, which must not show."""
    shape = (1, side, side, pixels.shape[-1])
    canvas = np.random.default_rng(0).integers(0, 256, shape).astype(pixels.dtype)
    canvas[0, : pixels.shape[0], : pixels.shape[1]] = pixels
    return canvas


BOXES = [
    (0, 0, 90, 70, 0),
    (0, 0, 90, 70, 1),
    (13, 5, 60, 61, 0),  # one side hardly changes
    (80, 60, 10, 10, 1),  # enlarged
    (3, 2, 1, 1, 0),
    (1, 0, 89, 3, 0),
]


def pillow(image: Image.Image, box: tuple, size: tuple[int, int]) -> np.ndarray:
    left, top, width, height, flip = box
    crop = image.crop((left, top, left + width, top + height))
    resized = crop.resize(size[::-1], Image.Resampling.BICUBIC)
    if flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(resized)


@pytest.mark.parametrize('size', [(32, 32), (24, 48)])
def test_a_crop_is_pillows_but_for_a_rounding(size):
    pixels = picture(90, 70)
    ours = crop_and_resize(on_canvas(pixels, 96), np.array(BOXES, np.int32), size)
    assert ours.shape == (len(BOXES), *size, 3) and ours.dtype == np.float32
    for box, actual in zip(BOXES, np.asarray(ours), strict=True):
        difference = np.abs(actual - pillow(Image.fromarray(pixels), box, size))
        # Pillow from 13 on begins down where many more rows go than columns: other roundings.
        down = box[3] - size[0] > 2 * max(box[2] - size[1], 0)
        assert difference.max() <= (2 if down else 1)
        assert difference.mean() < (0.3 if down else 0.01)


def test_the_rows_of_an_image_follow_each_other():
    canvases = np.concatenate([on_canvas(picture(w, 40), 64) for w in (50, 60)])
    boxes = np.array([(0, 0, 50, 40, 0), (5, 5, 20, 20, 0)] * 2, np.int32)
    ours = np.asarray(crop_and_resize(canvases, boxes, (16, 16)))
    for row, width in enumerate((50, 50, 60, 60)):
        expected = pillow(Image.fromarray(picture(width, 40)), boxes[row], (16, 16))
        assert np.abs(ours[row] - expected).max() <= 1


@pytest.mark.parametrize('dtype', [np.uint16, np.float32])
def test_other_depths_are_rounded_once_or_never(dtype):
    band = (picture(90, 70)[..., :1].astype(np.float64) * 257).astype(dtype)
    (actual,) = crop_and_resize(
        on_canvas(band, 96), np.array([(9, 8, 70, 50, 0)], np.int32), (32, 32)
    )
    image = Image.fromarray(band[..., 0].astype(np.float32))
    expected = pillow(image, (9, 8, 70, 50, 0), (32, 32))[..., None]
    if dtype == np.uint16:
        assert (actual == np.round(actual)).all()
        assert np.abs(np.asarray(actual) - expected.clip(0, 65535)).max() <= 0.51
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=0.05)
