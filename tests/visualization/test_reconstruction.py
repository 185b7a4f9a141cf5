import numpy as np
import pytest
from helpers.drawings import hidden_pixels
from helpers.models import make_mae

from mae_jax.tasks.preprocess import normalize
from mae_jax.visualization.drawing import HIDDEN_GREY, to_pixels
from mae_jax.visualization.reconstruction import fill_hidden, reconstruction_columns


def make_example(batch=2, height=8, width=12, patch=4, channels=3, seed=0):
    """Images, a prediction and a mask with half of the patches hidden."""
    rng = np.random.default_rng(seed)
    patches = (height // patch) * (width // patch)
    images = rng.normal(size=(batch, height, width, channels)).astype(np.float32)
    prediction = rng.normal(size=(batch, patches, patch * patch * channels)).astype(np.float32)
    mask = np.arange(patches) % 2 == np.arange(batch)[:, None] % 2
    return images, prediction, mask


def as_pixels(images, prediction, target):
    """What a model of that target, with patches of 4 x 4, makes pixels of."""
    model = make_mae(patch_size=4, width=8, depth=1, heads=1, target=target)
    return model.apply({}, prediction, images, method='pixels')


def paste_by_hand(images, prediction, mask, patch, normalized):
    """Pixel by pixel, in float64: what `fill_hidden` must give."""
    result = images.astype(np.float64)
    columns = images.shape[2] // patch
    for b, n in np.argwhere(mask):
        top, left = n // columns * patch, n % columns * patch
        original = images[b, top : top + patch, left : left + patch].astype(np.float64)
        mean, std = original.mean(), np.sqrt(original.var(ddof=1) + 1e-6)
        for y in range(patch):
            for x in range(patch):
                for c in range(images.shape[3]):
                    value = prediction[b, n, (y * patch + x) * images.shape[3] + c]
                    value = value * std + mean if normalized else value
                    result[b, top + y, left + x, c] = value
    return result


@pytest.mark.parametrize('normalized', [False, True])
@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_hidden_patches_are_the_prediction_and_visible_ones_untouched(normalized, channels):
    images, prediction, mask = make_example(channels=channels)
    pixels = as_pixels(images, prediction, 'normalized_pixel' if normalized else 'pixel')
    got = np.asarray(fill_hidden(images, pixels, mask, 4))
    expected = paste_by_hand(images, prediction, mask, 4, normalized)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    visible = ~hidden_pixels(mask, 8, 12, 4)
    assert got.dtype == images.dtype
    assert got[visible].tobytes() == images[visible].tobytes()


def test_the_true_target_of_a_normalised_model_gives_the_image_back():
    # A picture scaled to look like noise otherwise: bright patches of low contrast.
    images, _, mask = make_example()
    images = images * 0.05 + 3.0
    blocks = images.reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 48)
    mean = blocks.mean(-1, keepdims=True)
    std = np.sqrt(blocks.var(-1, ddof=1, keepdims=True) + 1e-6)
    pixels = as_pixels(images, (blocks - mean) / std, 'normalized_pixel')
    got = fill_hidden(images, pixels, np.ones_like(mask), 4)
    np.testing.assert_allclose(np.asarray(got), images, atol=1e-5)


def pixels_of(images, prediction, mask, mean, std):
    """The columns for patches of 4 x 4 raw pixels, in their order."""
    options = dict(patch_size=4, mean=mean, std=std)
    columns = reconstruction_columns(images, prediction, mask, **options, raw=True)
    assert list(columns) == ['original', 'masked', 'reconstruction', 'raw prediction']
    unasked = reconstruction_columns(images, prediction, mask, **options)
    assert list(unasked) == ['original', 'masked', 'reconstruction']
    assert all((unasked[title] == columns[title]).all() for title in unasked)
    assert {column.dtype for column in columns.values()} == {np.dtype(np.uint8)}
    return columns.values()


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_columns_show_original_masked_and_reconstructed(channels):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (2, 8, 12, channels)).astype(np.uint8)
    mean, std = np.linspace(0.3, 0.5, channels), np.linspace(0.2, 0.3, channels)
    images = ((raw / 255.0 - mean) / std).astype(np.float32)
    _, prediction, mask = make_example(channels=channels)
    original, masked, filled, full = pixels_of(images, prediction, mask, mean, std)
    first_three = raw[..., :3] if channels >= 3 else raw[..., :1].repeat(3, axis=-1)
    np.testing.assert_array_equal(original, first_three)
    hidden = hidden_pixels(mask, 8, 12, 4)
    assert (masked[hidden] == HIDDEN_GREY).all()
    np.testing.assert_array_equal(masked[~hidden], first_three[~hidden])
    np.testing.assert_array_equal(filled[~hidden], first_three[~hidden])
    for drawn, where in ((filled, mask), (full, np.ones_like(mask))):
        by_hand = paste_by_hand(images, prediction, where, 4, False) * std + mean
        by_hand = np.clip(by_hand * 255, 0, 255)[..., : 3 if channels >= 3 else 1]
        assert np.abs(drawn.astype(float) - by_hand).max() <= 0.5 + 1e-3


def test_every_byte_comes_back_from_its_normalised_value():
    raw = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.1, 0.9), (0.305, 0.376)):
        images = normalize(raw, scale=255.0, mean=(mean,) * 3, std=(std,) * 3)
        images = np.asarray(images)
        np.testing.assert_array_equal(to_pixels(images, (mean,) * 3, (std,) * 3), raw)


def test_values_out_of_range_are_clipped_and_not_wrapped():
    images = np.zeros((1, 8, 8, 3), np.float32)
    prediction = np.stack([np.full((1, 48), 100.0), np.full((1, 48), -100.0)] * 2, 1)
    everywhere = np.ones((1, 4), bool)
    _, _, full, filled = pixels_of(images, prediction, everywhere, (0.5,) * 3, (0.25,) * 3)
    assert set(np.unique(full)) == set(np.unique(filled)) == {0, 255}
