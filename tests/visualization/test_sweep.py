"""Reconstructions at several mask ratios, against models whose prediction is known."""

import functools

import jax
import numpy as np
import pytest
from helpers.drawings import cut, hidden_pixels
from helpers.models import make_mae, with_ratio
from helpers.photographs import MEAN, PATCH, SHAPE, STD, normalised, photograph

from mae_jax.errors import UserError
from mae_jax.models.mae import MAE
from mae_jax.pretext.targets import Pixel
from mae_jax.visualization.reconstruction import mask_noise, predict, sweep_columns


def tiny_mae(**fields) -> MAE:
    sizes = dict(patch_size=PATCH, width=8, depth=1, heads=2)
    decoder = dict(decoder_width=8, decoder_depth=1, decoder_heads=2)
    return make_mae(**sizes | decoder | fields)


@functools.cache
def parameters(model: MAE):
    rngs = {'params': jax.random.key(0), 'mask': jax.random.key(1)}
    return jax.jit(model.init)(rngs, np.zeros((1, *SHAPE), np.float32))['params']


def memorising_model(pixels: np.ndarray, target: str):
    """Makes a model that predicts `pixels` for any image: (model, parameters).

    Its decoder's tokens are its positions alone, one-hot by patch; the rows of its head are the
    prediction of each.
    """
    model = tiny_mae(target=target)
    params = parameters(model)
    decoder = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params['decoder'])
    one_hot = np.eye(8, dtype=np.float32)
    decoder['pos_embed'] = one_hot[:7][None]  # the cls token's, then six patches'
    decoder['norm']['scale'] += 1
    tokens = one_hot[1:7] - one_hot[1:7].mean(axis=-1, keepdims=True)
    tokens /= np.sqrt((tokens**2).mean(axis=-1, keepdims=True) + 1e-6)
    expected = cut(normalised(pixels), PATCH).astype(np.float64)
    if target == 'normalized_pixel':
        deviation = np.sqrt(expected.var(axis=1, ddof=1, keepdims=True) + 1e-6)
        expected = (expected - expected.mean(axis=1, keepdims=True)) / deviation
    decoder['head']['kernel'] = np.linalg.lstsq(tokens, expected)[0].astype(np.float32)
    return model, params | {'decoder': decoder}


@pytest.mark.parametrize('target', ['pixel', 'normalized_pixel'])
def test_a_model_that_has_memorised_an_image_draws_it(target):
    # In a wrong order of patches, or of pixels in them, no two would be in their positions.
    pixels = photograph()
    model, params = memorising_model(pixels, target)
    images = normalised(pixels)[None]
    columns = sweep_columns(model, params, images, [0.5], seed=0, mean=MEAN, std=STD, raw=True)
    for title in ('original', 'reconstruction', 'raw prediction'):
        difference = columns[title][0].astype(int) - pixels
        assert np.abs(difference).max() <= (title != 'original'), title
    noise = mask_noise(0, images, with_ratio(model, 0.5))
    hidden = hidden_pixels(np.argsort(np.argsort(noise)) >= 3, *SHAPE[:2], PATCH)
    np.testing.assert_array_equal((columns['masked'] == 128).all(axis=-1), hidden)


def test_a_sweep_hides_more_of_the_same_and_draws_each_reconstruction():
    model = tiny_mae()
    images = np.stack([normalised(photograph(seed)) for seed in range(3)])
    params = parameters(model)
    ratios = [0.5, 0.675, 0.8]
    columns = sweep_columns(model, params, images, ratios, seed=0, mean=MEAN, std=STD)
    assert list(columns) == [
        'original',
        'masked, 50%',
        'reconstruction, 50%',
        'masked, 67.5%',
        'reconstruction, 67.5%',
        'masked, 80%',
        'reconstruction, 80%',
    ]
    original, *rest = columns.values()
    np.testing.assert_array_equal(original, np.stack([photograph(seed) for seed in range(3)]))
    order = np.argsort(mask_noise(0, images, model), axis=1)
    for kept, masked, filled in zip((3, 1, 1), rest[::2], rest[1::2], strict=True):
        mask = np.ones((3, 6), bool)
        np.put_along_axis(mask, order[:, :kept], False, axis=1)
        hidden = hidden_pixels(mask, *SHAPE[:2], PATCH)
        assert (masked[hidden] == 128).all()
        np.testing.assert_array_equal(masked[~hidden], original[~hidden])
        np.testing.assert_array_equal(filled[~hidden], original[~hidden])
        assert (filled[hidden] != original[hidden]).mean() > 0.9


def test_the_mask_of_an_image_depends_on_seed_and_index_alone():
    model, images = tiny_mae(), np.zeros((5, *SHAPE), np.float32)
    noise = mask_noise(0, images, model)
    np.testing.assert_array_equal(mask_noise(0, images[:3], model), noise[:3])
    assert len(np.unique(noise)) == noise.size
    assert not np.isin(mask_noise(1, images, model), noise).any()


@pytest.mark.slow
@pytest.mark.parametrize(('strategy', 'ratio'), [('block', 0.5), ('grid', 0.75)])
def test_other_strategies_are_drawn_as_they_mask(strategy, ratio):
    model = tiny_mae(mask_ratio=ratio, strategy=strategy, patch_size=2)
    images = np.stack([normalised(photograph()[:8, :8])])
    params = jax.jit(model.init)(jax.random.key(0), images, np.zeros((1, 16)))['params']
    columns = sweep_columns(model, params, images, [ratio], seed=0, mean=MEAN, std=STD)
    grey = (columns['masked'][0] == 128).all(axis=-1)[::2, ::2]
    assert grey.sum() == 16 * ratio
    if strategy == 'grid':
        cells = ~grey.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
        assert (cells == cells[0]).all() and cells[0].sum() == 1


def test_many_images_are_predicted_in_batches():
    model = tiny_mae()
    images = np.stack([normalised(photograph(seed)) for seed in range(19)])
    params = parameters(model)
    model = with_ratio(model, 0.5).clone(target=Pixel())
    noise = mask_noise(0, images, model)
    prediction, mask = predict(model, params, images, noise)
    whole = jax.jit(model.apply)({'params': params}, images, noise=noise)
    np.testing.assert_allclose(prediction, whole.prediction, atol=1e-5)
    np.testing.assert_array_equal(mask, whole.mask)


@pytest.mark.parametrize('ratio', [0.0, 1.0, -1.0, float('nan')])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(ratio):
    model, params = memorising_model(photograph(), 'pixel')
    with pytest.raises(UserError, match=f'mask.ratio={ratio}'):
        images = normalised(photograph())[None]
        sweep_columns(model, params, images, [ratio], seed=0, mean=MEAN, std=STD)
