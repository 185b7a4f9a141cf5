"""The rows of the paper's Table 1 that change the model: what goes in, what must come out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers.models import make_mae

from mae_jax.errors import UserError
from mae_jax.pretext.pca import fit_pca

SIZES = dict(
    patch_size=2, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2
)
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)
NOISE = np.random.default_rng(1).uniform(size=(3, 24)).astype(np.float32)


def make(**fields):
    """A model, and parameters in which every tensor is random."""
    model = make_mae(**SIZES | {'target': 'pixel'} | fields)
    initial = jax.jit(model.init)(jax.random.key(0), IMAGES, NOISE)['params']
    params = traverse_util.flatten_dict(initial)
    rng = np.random.default_rng(2)
    for name, value in params.items():
        if name[0] != 'pca':
            params[name] = rng.normal(size=value.shape).astype(np.float32) * 0.2
    return model, traverse_util.unflatten_dict(params)


def patches_by_hand(images=IMAGES):
    batch, height, width, channels = images.shape
    cut = [
        images[:, y : y + 2, x : x + 2].reshape(batch, -1)
        for y in range(0, height, 2)
        for x in range(0, width, 2)
    ]
    return np.stack(cut, axis=1).astype(np.float64)


def hidden_by_hand(kept=6):
    return np.argsort(np.argsort(NOISE, axis=1), axis=1) >= kept


def changed(images, where):
    """The images with other pixels in the patches `where`, bool [B, 24]."""
    cells = where.reshape(3, 4, 6).repeat(2, axis=1).repeat(2, axis=2)
    return np.where(cells[..., None], images + 1, images).astype(np.float32)


def output_of(model, params, *target):
    return jax.jit(model.apply)({'params': params}, IMAGES, NOISE, *target)


def predicted(model, params, images):
    return np.asarray(jax.jit(model.apply)({'params': params}, images, NOISE).prediction)


def test_the_loss_of_pixels_and_of_normalised_pixels_is_that_of_numpy():
    patches, hidden = patches_by_hand(), hidden_by_hand()
    deviation = np.sqrt(patches.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
    normalized = (patches - patches.mean(axis=-1, keepdims=True)) / deviation
    for target, expected in (('pixel', patches), ('normalized_pixel', normalized)):
        model, params = make(target=target)
        output = output_of(model, params)
        errors = np.square(np.float64(output.prediction) - expected).mean(axis=-1)
        np.testing.assert_allclose(output.errors, errors, rtol=1e-4)
        np.testing.assert_allclose(output.loss, errors[hidden].mean(), rtol=1e-5)
        model, _ = make(target=target, target_fields={'loss_on': 'all'})
        loss = output_of(model, params).loss
        np.testing.assert_allclose(loss, errors.mean(), rtol=1e-5)


def test_the_loss_of_pca_is_that_of_the_largest_coefficients():
    patches, hidden = patches_by_hand(), hidden_by_hand()
    model, params = make(target='pca', target_fields={'components': 5})
    params['pca'], _ = fit_pca(patches, 5)
    output = output_of(model, params)
    assert output.prediction.shape == (3, 24, 5)
    flat = patches.reshape(-1, 12)
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    largest = vectors[:, np.argsort(values)[::-1][:5]]
    largest *= np.sign(np.sum(largest * params['pca']['basis'], axis=0))
    expected = (patches - flat.mean(axis=0)) @ largest
    errors = np.square(np.float64(output.prediction) - expected).mean(axis=-1)
    np.testing.assert_allclose(output.loss, errors[hidden].mean(), rtol=1e-4)


def test_a_basis_that_was_not_fitted_gives_no_loss():
    model, params = make(target='pca', target_fields={'components': 2})
    assert params['pca'].keys() == {'mean', 'basis'}
    assert np.isnan(output_of(model, params).loss)


def test_coefficients_become_pixels_again():
    model, params = make(target='pca', target_fields={'components': 12})
    params['pca'], _ = fit_pca(patches_by_hand(), 12)
    coefficients = (patches_by_hand() - params['pca']['mean']) @ params['pca']['basis']
    pixels = model.apply({'params': params}, coefficients, IMAGES, method='pixels')
    np.testing.assert_allclose(pixels, patches_by_hand(), atol=1e-4)


def test_the_loss_of_tokens_is_their_cross_entropy():
    ids, hidden = np.random.default_rng(3).integers(0, 9, (3, 24)), hidden_by_hand()
    model, params = make(target='token', target_fields={'codes': 9})
    output = output_of(model, params, ids)
    assert output.prediction.shape == (3, 24, 9)
    logits = np.float64(output.prediction)
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chosen = np.take_along_axis(odds / odds.sum(-1, keepdims=True), ids[..., None], -1)[..., 0]
    np.testing.assert_allclose(output.loss, -np.log(chosen)[hidden].mean(), rtol=1e-5)


def test_tokens_that_are_not_given_leave_a_prediction_and_no_loss():
    model, params = make(target='token', target_fields={'codes': 9})
    output = output_of(model, params)
    assert np.isnan(output.loss) and np.isfinite(output.prediction).all()
    with pytest.raises(UserError, match='predicts no pixels'):
        model.apply({'params': params}, output.prediction, IMAGES, method='pixels')


@pytest.mark.parametrize('mask_tokens', [False, True])
def test_no_prediction_depends_on_what_hidden_patches_show(mask_tokens):
    model, params = make(encoder_mask_tokens=mask_tokens)
    before = predicted(model, params, IMAGES)
    hidden = hidden_by_hand()
    np.testing.assert_array_equal(predicted(model, params, changed(IMAGES, hidden)), before)
    assert (predicted(model, params, changed(IMAGES, ~hidden)) != before).any()


def test_an_encoder_with_mask_tokens_sees_all_positions_and_the_decoder_has_none():
    model, params = make(encoder_mask_tokens=True)
    plain = make()[1]
    assert params['encoder'].keys() - plain['encoder'].keys() == {'mask_token'}
    assert plain['decoder'].keys() - params['decoder'].keys() == {'mask_token'}
    before = predicted(model, params, IMAGES)
    params['encoder']['mask_token'] = params['encoder']['mask_token'][..., ::-1]
    difference = np.abs(predicted(model, params, IMAGES) - before)
    assert np.median(difference) > 1e-3  # in hidden patches and, by attention, in visible ones


@pytest.mark.slow
@pytest.mark.parametrize(
    ('fields', 'tolerance'),
    [(dict(scan=True, remat='block'), 1e-5), (dict(dtype=jnp.bfloat16), 0.05)],
)
def test_mask_tokens_have_the_same_gradient_in_scanned_and_bfloat16_blocks(fields, tolerance):
    model, params = make(encoder_mask_tokens=True)

    def gradient(model):
        loss = lambda params: model.apply({'params': params}, IMAGES, NOISE).loss  # noqa: E731
        return jax.jit(jax.grad(loss))(params)['encoder']['mask_token']

    expected = gradient(model)
    actual = gradient(model.clone(**fields))
    assert actual.dtype == np.float32
    assert np.abs(actual - expected).max() < tolerance * np.abs(expected).max()


def test_with_nothing_hidden_mask_tokens_change_nothing():
    model, params = make(encoder_mask_tokens=True, mask_ratio=0.0, target_fields={'loss_on': 'all'})
    before = predicted(model, params, IMAGES)
    params['encoder']['mask_token'] = params['encoder']['mask_token'][..., ::-1]
    np.testing.assert_array_equal(predicted(model, params, IMAGES), before)


def test_a_decoder_without_blocks_is_a_linear_head_of_each_token():
    model, params = make(decoder_depth=0)
    assert params['decoder'].keys() == {'embed', 'mask_token', 'norm', 'head', 'pos_embed'}
    before, hidden = predicted(model, params, IMAGES), hidden_by_hand()
    first = np.zeros_like(hidden)
    first[:, :1] = True
    after = predicted(model, params, changed(IMAGES, first))
    # Hidden patches depend on their position alone.
    np.testing.assert_array_equal(after[hidden], before[hidden])
    d = params['decoder']
    token = d['mask_token'][0, 0] + d['pos_embed'][0, 1:]
    token = token - token.mean(axis=-1, keepdims=True)
    token = token / np.sqrt(np.square(token).mean(axis=-1, keepdims=True) + 1e-6)
    token = token * d['norm']['scale'] + d['norm']['bias']
    by_hand = np.broadcast_to(token @ d['head']['kernel'] + d['head']['bias'], before.shape)
    np.testing.assert_allclose(before[hidden], by_hand[hidden], rtol=1e-4, atol=1e-5)


def test_a_negative_depth_is_refused_by_name():
    with pytest.raises(UserError, match=r'model\.decoder_depth=-1'):
        make(decoder_depth=-1)


def test_nothing_hidden_is_refused_unless_all_patches_count():
    with pytest.raises(UserError, match=r"mask\.ratio=0\.0 hides none.*target\.loss_on='all'"):
        make(mask_ratio=0.0)
    model, params = make(mask_ratio=0.0, target_fields={'loss_on': 'all'})
    output = output_of(model, params)
    assert not output.mask.any() and np.isfinite(output.loss)
