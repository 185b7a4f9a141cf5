"""Sliding windows and resized logits against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models.segmentation.windows import map_enlarged, num_windows, slide

WINDOW = (6, 8)
SIZES = np.array([(6, 8), (11, 13), (14, 9), (4, 13), (13, 14)])


def predict(images):
    """Logits that depend on the pixel, on its neighbour and on its place in the window."""
    rows, columns = np.indices(WINDOW)
    place = np.sin(rows + 2.0 * columns)[None, ..., None].astype(np.float32)
    shifted = jnp.roll(jnp.asarray(images), 1, axis=1)
    return jnp.concatenate([images * place, shifted + place], axis=-1)


def draw() -> np.ndarray:
    rng = np.random.default_rng(0)
    images = np.full((len(SIZES), 14, 14, 2), 7, np.float32)  # what is beyond them must not count
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[:height, :width] = rng.normal(size=(height, width, 2))
    return images


def slide_by_hand(image: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    """As mmsegmentation documents it; a smaller image is padded to a window."""
    height, width = image.shape[:2]
    short = [max(w - n, 0) for w, n in zip(WINDOW, (height, width), strict=True)]
    image = np.pad(image, ((0, short[0]), (0, short[1]), (0, 0)))
    total, count = np.zeros((*image.shape[:2], 4)), np.zeros((*image.shape[:2], 1))
    tops, lefts = (
        range(0, max(n - w + s - 1, 0) // s * s + 1, s)
        for n, w, s in zip(image.shape, WINDOW, stride, strict=False)
    )
    for top in tops:
        for left in lefts:
            top_, left_ = min(top, image.shape[0] - 6), min(left, image.shape[1] - 8)
            place = np.s_[top_ : top_ + 6, left_ : left_ + 8]
            total[place] += np.asarray(predict(image[None][:, *place]))[0]
            count[place] += 1
    return (total / count)[:height, :width]


@pytest.mark.parametrize('stride', [(4, 5), (6, 8), (1, 3)])
def test_windows_are_averaged_over_images_of_every_size(stride):
    images = draw()
    run = jax.jit(lambda images, sizes: slide(predict, images, sizes, WINDOW, stride))
    logits = np.asarray(run(images, SIZES))
    assert logits.shape == (5, 14, 14, 4)
    for image, result, (height, width) in zip(images, logits, SIZES, strict=True):
        expected = slide_by_hand(image[:height, :width], stride)
        np.testing.assert_allclose(result[:height, :width], expected, atol=1e-5)


def test_a_canvas_smaller_than_a_window_is_one_window():
    image = draw()[1:2, :5, :7]
    logits = slide(predict, image, np.array([[5, 7]]), WINDOW, (4, 5))
    np.testing.assert_allclose(logits[0], slide_by_hand(image[0], (4, 5)), atol=1e-6)


@pytest.mark.parametrize(
    ('length', 'window', 'stride', 'count'),
    [(512, 512, 341, 1), (513, 512, 341, 2), (853, 512, 341, 2), (854, 512, 341, 3), (9, 12, 5, 1)],
)
def test_as_many_windows_as_cover_all_pixels(length, window, stride, count):
    assert num_windows(length, window, stride) == count


def enlarged_by_hand(logits: np.ndarray, new: tuple[int, int]) -> np.ndarray:
    """Each pixel from four."""
    result = np.empty((*new, logits.shape[-1]))
    for i, j in np.ndindex(*new):
        low, high, share = [], [], []
        for place, old, size in zip((i, j), logits.shape, new, strict=False):
            source = max((place + 0.5) * old / size - 0.5, 0)
            low.append(min(int(source), old - 1))
            high.append(min(low[-1] + 1, old - 1))
            share.append(source - low[-1])
        (a, b), (c, d), (s, t) = low, high, share
        top = logits[a, b] * (1 - t) + logits[a, d] * t
        bottom = logits[c, b] * (1 - t) + logits[c, d] * t
        result[i, j] = top * (1 - s) + bottom * s
    return result


def test_logits_are_resized_for_each_image_by_itself():
    """Larger, smaller, equal, and one axis larger while the other is smaller."""
    logits, sizes = draw(), np.minimum(SIZES, 14)
    new = np.array([(40, 37), (5, 6), (14, 9), (20, 3), (39, 40)])
    run = jax.jit(
        lambda logits: map_enlarged(lambda row, x: (row, x), logits, sizes, new, (41, 40))
    )
    rows, result = run(logits)
    np.testing.assert_array_equal(rows, np.arange(41))
    for number, ((height, width), (tall, wide)) in enumerate(zip(sizes, new, strict=True)):
        expected = enlarged_by_hand(
            logits[number, :height, :width].astype(np.float64), (tall, wide)
        )
        np.testing.assert_allclose(result[:tall, number, :wide], expected, atol=1e-5)
