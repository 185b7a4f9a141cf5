"""`mae_jax.reconstruct` against MAE.apply image by image and patches pasted by hand."""

import jax
import numpy as np
import pytest
from helpers.drawings import hidden_pixels
from helpers.models import make_mae, with_ratio

import mae_jax
from mae_jax.errors import UserError
from mae_jax.inference.reconstruct import complementary_masks
from mae_jax.models.classifier import Classifier

PATCH, SIDES, BATCH = 4, (8, 12), 4
PATCHES = 6


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).normal(size=(BATCH, *SIDES, 3)).astype(np.float32)


@pytest.fixture(scope='module', params=['pixel', 'normalized_pixel'])
def trained(request, images):
    """(model, random parameters)."""
    sizes = dict(patch_size=PATCH, width=8, depth=1, heads=2)
    sizes |= dict(decoder_width=8, decoder_depth=1, decoder_heads=2)
    model = make_mae(target=request.param, mask_ratio=0.5, **sizes)
    rngs = {'params': jax.random.key(0), 'mask': jax.random.key(0)}
    shapes = jax.eval_shape(model.init, rngs, images)['params']
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def by_hand(trained, image, mask):
    """float64 [H,W,3]: hidden patches pasted one by one from what `MAE.apply` predicts."""
    model, params = trained
    masked = with_ratio(model, mask.mean())
    noise = mask[None].astype(np.float32)
    output = masked.apply({'params': params}, image[None], noise=noise)
    np.testing.assert_array_equal(output.mask[0], mask)
    result = image.astype(np.float64)
    for n in np.flatnonzero(mask):
        top, left = n // (SIDES[1] // PATCH) * PATCH, n % (SIDES[1] // PATCH) * PATCH
        here = np.s_[top : top + PATCH, left : left + PATCH]
        values = np.asarray(output.prediction[0, n], np.float64).reshape(PATCH, PATCH, 3)
        if type(model.target).__name__ == 'NormalizedPixel':
            own = image[here].astype(np.float64)
            values = values * np.sqrt(own.var(ddof=1) + 1e-6) + own.mean()
        result[here] = values
    return result


MASKS = np.array([[0, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6, [1, 0, 1, 1, 1, 1]], bool)


def test_each_image_is_filled_under_its_own_mask(trained, images):
    result = mae_jax.reconstruct(*trained, images, MASKS)
    assert result.reconstruction.dtype == result.error.dtype == np.float32
    hidden = hidden_pixels(MASKS, *SIDES, PATCH)
    np.testing.assert_array_equal(result.mask, hidden)
    for index in (0, 1, 3):
        expected = by_hand(trained, images[index], MASKS[index])
        np.testing.assert_allclose(result.reconstruction[index], expected, rtol=1e-4, atol=1e-5)
    assert result.reconstruction[~hidden].tobytes() == images[~hidden].tobytes()
    np.testing.assert_array_equal(result.reconstruction[2], images[2])
    difference = result.reconstruction.astype(np.float64) - images
    np.testing.assert_allclose(result.error, (difference**2).sum(-1) / 3, rtol=1e-5)
    assert (result.error[~hidden] == 0).all() and (result.error[hidden] > 0).all()


def test_a_painted_pixel_hides_its_patch_in_every_image(trained, images):
    painted = np.zeros((1, *SIDES), bool)
    painted[0, 3, 4] = painted[0, 7, 11] = True  # the first row's second, the last patch
    result = mae_jax.reconstruct(*trained, images, painted)
    patches = np.array([[0, 1, 0, 0, 0, 1]] * BATCH, bool)
    np.testing.assert_array_equal(result.mask, hidden_pixels(patches, *SIDES, PATCH))
    again = mae_jax.reconstruct(*trained, images, patches[:1])
    np.testing.assert_array_equal(result.reconstruction, again.reconstruction)


@pytest.mark.parametrize('masks', [2, 3, 4, 6])
def test_complementary_masks_hide_every_patch_exactly_once(masks):
    drawn = complementary_masks(images=3, patches=6, masks=masks, seed=0)
    assert drawn.shape == (masks, 3, 6) and drawn.dtype == bool
    np.testing.assert_array_equal(drawn.sum(axis=0), 1)
    hidden = drawn.sum(axis=2)
    assert set(hidden.ravel()) <= {6 // masks, -(-6 // masks)}
    np.testing.assert_array_equal(drawn[:, :2], complementary_masks(2, 6, masks, seed=0))
    assert (drawn != complementary_masks(3, 6, masks, seed=1)).any()
    assert (drawn[:, 0] != drawn[:, 1]).any()


@pytest.mark.parametrize('masks', [2, 4])
def test_a_full_reconstruction_is_made_of_one_for_each_mask(trained, images, masks):
    result = mae_jax.reconstruct(*trained, images[:2], masks=masks, seed=5)
    assert result.mask.all()
    drawn = complementary_masks(2, PATCHES, masks, seed=5)
    expected = np.zeros((2, *SIDES, 3))
    for index, image in enumerate(images[:2]):
        for mask in drawn[:, index]:
            here = hidden_pixels(mask[None], *SIDES, PATCH)[0]
            expected[index][here] = by_hand(trained, image, mask)[here]
    np.testing.assert_allclose(result.reconstruction, expected, rtol=1e-4, atol=1e-4)


def test_without_masks_they_are_drawn_as_in_training_and_the_error_is_the_loss(trained, images):
    model, params = trained
    result = mae_jax.reconstruct(model, params, images, seed=3)
    patches = result.mask[:, ::PATCH, ::PATCH].reshape(BATCH, PATCHES)
    np.testing.assert_array_equal(patches.sum(axis=1), PATCHES // 2)
    output = model.apply({'params': params}, images, noise=patches.astype(np.float32))
    np.testing.assert_array_equal(output.mask, patches)
    if type(model.target).__name__ == 'Pixel':
        assert result.error[result.mask].mean() == pytest.approx(float(output.loss), rel=1e-5)
    others = mae_jax.reconstruct(model, params, images, seed=4)
    assert (result.mask != others.mask).any()


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(mask=np.ones((1, 6), bool)), 'hides all of its 6 patches'),
        (dict(mask=np.zeros((1, 6), np.uint8)), 'mask is uint8, and must be bool'),
        (dict(mask=np.zeros((4, 5), bool)), r'mask has shape \(4, 5\)'),
        (dict(mask=np.zeros((3, 8, 12), bool)), r'mask has shape \(3, 8, 12\)'),
        (dict(mask=np.zeros((1, 6), bool), masks=2), 'mask or masks, not both'),
        (dict(masks=1), 'masks=1 must be from 2 to 6'),
        (dict(masks=7), 'masks=7 must be from 2 to 6'),
        (dict(seed=-1), 'seed=-1 must be'),
    ],
)
def test_a_mask_that_does_not_work_is_refused(trained, images, given, message):
    with pytest.raises(UserError, match=message):
        mae_jax.reconstruct(*trained, images, **given)


def test_other_images_and_models_are_refused(trained, images):
    model, params = trained
    with pytest.raises(UserError, match='8 x 8 pixels and 3 channel.* are 4 patches.* takes 6'):
        mae_jax.reconstruct(model, params, images[:, :, :8], masks=2)
    with pytest.raises(UserError, match='1 channel.* of 3 channel'):
        mae_jax.reconstruct(model, params, images[..., :1], masks=2)
    classifier = Classifier(PATCH, width=8, depth=1, heads=2, num_classes=2)
    with pytest.raises(UserError, match='needs an autoencoder, and this is a Classifier'):
        mae_jax.reconstruct(classifier, params, images, masks=2)
