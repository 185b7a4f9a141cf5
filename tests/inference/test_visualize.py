"""What is drawn is worked out apart: patches cut in loops, attention and components by NumPy."""

import functools

import jax
import numpy as np
import pytest
from helpers.drawings import cut, hidden_pixels
from helpers.models import make_mae, with_ratio
from PIL import Image

from mae_jax.errors import UserError
from mae_jax.inference.visualize import read_images
from mae_jax.models.mae import MAE
from mae_jax.models.vit import Encoder
from mae_jax.pretext.targets import Pixel
from mae_jax.visualization.features import (
    attention_columns,
    cls_attention,
    pca_columns,
    principal_components,
)
from mae_jax.visualization.reconstruction import mask_noise, predict, sweep_columns

PATCH, GRID = 4, (3, 2)
SHAPE = (12, 8, 3)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def photograph(seed: int = 0) -> np.ndarray:
    """uint8 of `SHAPE`, no two patches alike."""
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def normalised(pixels: np.ndarray) -> np.ndarray:
    return ((pixels / 255.0 - MEAN) / STD).astype(np.float32)


def tiny_mae(**fields) -> MAE:
    sizes = dict(patch_size=PATCH, width=8, depth=1, heads=2)
    decoder = dict(decoder_width=8, decoder_depth=1, decoder_heads=2)
    return make_mae(**sizes | decoder | fields)


@functools.cache
def parameters(model: MAE):
    rngs = {'params': jax.random.key(0), 'mask': jax.random.key(1)}
    return jax.jit(model.init)(rngs, np.zeros((1, *SHAPE), np.float32))['params']


def know_by_heart(pixels: np.ndarray, target: str):
    """A model that draws `pixels`, whatever it is shown: (model, parameters).

    Its decoder's tokens are its positions alone, one-hot by place; the rows of its head are what
    is to be predicted at each.
    """
    model = tiny_mae(target=target)
    params = parameters(model)
    decoder = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params['decoder'])
    places = np.eye(8, dtype=np.float32)
    decoder['pos_embed'] = places[:7][None]  # the cls token's, then six patches'
    decoder['norm']['scale'] += 1
    tokens = places[1:7] - places[1:7].mean(axis=-1, keepdims=True)
    tokens /= np.sqrt((tokens**2).mean(axis=-1, keepdims=True) + 1e-6)
    wanted = cut(normalised(pixels), PATCH).astype(np.float64)
    if target == 'normalized_pixel':
        deviation = np.sqrt(wanted.var(axis=1, ddof=1, keepdims=True) + 1e-6)
        wanted = (wanted - wanted.mean(axis=1, keepdims=True)) / deviation
    decoder['head']['kernel'] = np.linalg.lstsq(tokens, wanted)[0].astype(np.float32)
    return model, params | {'decoder': decoder}


@pytest.mark.parametrize('target', ['pixel', 'normalized_pixel'])
def test_a_model_that_knows_an_image_by_heart_draws_it(target):
    # Of a wrong order of patches, or of pixels in them, no two would lie where they should.
    pixels = photograph()
    model, params = know_by_heart(pixels, target)
    images = normalised(pixels)[None]
    columns = sweep_columns(model, params, images, [0.5], seed=0, mean=MEAN, std=STD)
    for title in ('original', 'reconstruction', 'reconstruction + visible'):
        difference = columns[title][0].astype(int) - pixels
        assert np.abs(difference).max() <= (title != 'original'), title
    noise = mask_noise(0, images, with_ratio(model, 0.5))
    hidden = hidden_pixels(np.argsort(np.argsort(noise)) >= 3, *SHAPE[:2], PATCH)
    np.testing.assert_array_equal((columns['masked'] == 128).all(axis=-1), hidden)


def test_a_sweep_hides_more_of_the_same_and_shows_what_becomes_of_it():
    model = tiny_mae()
    images = np.stack([normalised(photograph(seed)) for seed in range(3)])
    params = parameters(model)
    ratios = [0.5, 0.675, 0.8]
    columns = sweep_columns(model, params, images, ratios, seed=0, mean=MEAN, std=STD)
    assert list(columns) == [
        'original',
        'masked, 50%',
        'reconstruction + visible, 50%',
        'masked, 67.5%',
        'reconstruction + visible, 67.5%',
        'masked, 80%',
        'reconstruction + visible, 80%',
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


def test_what_an_image_is_shown_without_depends_on_seed_and_place_alone():
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


def test_many_images_go_through_in_parts():
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
    model, params = know_by_heart(photograph(), 'pixel')
    with pytest.raises(UserError, match=f'mask.ratio={ratio}'):
        images = normalised(photograph())[None]
        sweep_columns(model, params, images, [ratio], seed=0, mean=MEAN, std=STD)


# Attention ---------------------------------------------------------------------------------------


def make_encoder(depth: int, **fields):
    """(encoder, random parameters); all blocks but the last leave the tokens as they are."""
    encoder = Encoder(PATCH, width=8, depth=depth, heads=2, **fields)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, *SHAPE), np.float32))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes['params'])
    for i in range(depth - 1):
        block = params['blocks'][f'block_{i}']
        for layer in (block['attention']['proj'], block['mlp']['fc2']):
            layer.update({name: np.zeros_like(x) for name, x in layer.items()})
    return encoder, params


def attention_by_hand(params, image: np.ndarray, block: int) -> np.ndarray:
    """float64 [heads, rows, columns]: what the cls token sees, where no block before changes it."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    embed = params['patch_embed']
    patches = cut(image, PATCH) @ embed['kernel'] + embed['bias']
    tokens = np.concatenate([params['cls_token'][0], patches]) + params['pos_embed'][0]
    block = params['blocks'][f'block_{block}']
    centred = tokens - tokens.mean(axis=1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    normal = normal * block['norm1']['scale'] + block['norm1']['bias']
    qkv = normal @ block['attention']['qkv']['kernel'] + block['attention']['qkv']['bias']
    maps = []
    for head in range(2):
        query = qkv[0, 4 * head : 4 * head + 4]
        keys = qkv[:, 8 + 4 * head : 12 + 4 * head]
        logits = keys @ query / 2.0  # the root of a head's width, 4
        weights = np.exp(logits - logits.max())
        maps.append((weights / weights.sum())[1:].reshape(GRID))
    return np.stack(maps)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('depth, block, meant', [(1, -1, 0), (2, -1, 1), (2, 0, 0), (2, 1, 1)])
def test_attention_is_that_of_the_cls_token_at_the_block(depth, block, meant, scan):
    encoder, params = make_encoder(depth, scan=scan, remat='block' if scan else 'none')
    images = np.stack([normalised(photograph(seed)) for seed in range(2)])
    found = cls_attention(encoder, params, images, block)
    expected = np.stack([attention_by_hand(params, image, meant) for image in images])
    assert found.shape == (2, 2, *GRID)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('block', [2, -3])
@pytest.mark.parametrize('columns', [attention_columns, pca_columns])
def test_a_block_that_is_not_there_is_told(columns, block):
    encoder, params = make_encoder(2)
    with pytest.raises(UserError, match='block'):
        columns(encoder, params, normalised(photograph())[None], block)


def test_attention_is_drawn_head_by_head_over_the_patches():
    encoder, params = make_encoder(1)
    image = normalised(photograph())
    columns = attention_columns(encoder, params, image[None])
    assert list(columns) == ['mean of all heads', 'head 0', 'head 1']
    heads = attention_by_hand(params, image, 0)
    for drawn, weights in zip(columns.values(), [heads.mean(axis=0), *heads], strict=True):
        assert drawn.shape == (1, *SHAPE)
        patches = drawn[0].reshape(3, 4, 2, 4, 3)
        assert (patches == patches[:, :1, :, :1]).all()  # one colour a patch
        light = patches[:, 0, :, 0].sum(axis=-1, dtype=int)
        assert (light.ravel()[np.argsort(weights, axis=None)] == np.sort(light, axis=None)).all()
        np.testing.assert_array_equal(light[weights == weights.max()], 255 + 250 + 190)


# Principal components ----------------------------------------------------------------------------


def components_by_hand(features: np.ndarray) -> np.ndarray:
    """Of all patches together; their signs are free."""
    vectors = features.reshape(-1, features.shape[-1]).astype(np.float64)
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    return (left * values)[:, :3].reshape(*features.shape[:-1], 3)


def test_components_are_those_of_all_images_together():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 3, 5, 8)) * np.arange(1, 9) + rng.normal(size=8)
    found, expected = principal_components(features), components_by_hand(features)
    assert found.shape == (4, 3, 5, 3)
    signs = np.sign((found * expected).sum(axis=(0, 1, 2)))
    np.testing.assert_allclose(found, expected * signs, atol=1e-8)
    apart = [principal_components(image[None])[0] for image in features]
    assert np.abs(np.abs(np.stack(apart)) - np.abs(found)).max() > 0.1


def check_colours(drawn: np.ndarray, features: np.ndarray) -> None:
    """That `drawn`, uint8 [B,H,W,3], shows the components of [B,N,D], by percentiles by hand."""
    assert drawn.shape == (len(features), *SHAPE) and drawn.dtype == np.uint8
    components = components_by_hand(features.reshape(len(features), *GRID, -1))
    for band in range(3):
        values, shown = components[..., band], drawn[:, ::PATCH, ::PATCH, band].astype(int)
        patches = np.kron(shown, np.ones((1, PATCH, PATCH), int))
        np.testing.assert_array_equal(drawn[..., band], patches)
        low, high = np.percentile(values, (1, 99))
        expected = np.clip((values - low) / (high - low), 0, 1) * 255
        assert min(np.abs(x - shown).max() for x in (expected, 255 - expected)) <= 1  # either sign
        assert {shown.min(), shown.max()} == {0, 255}


def test_components_are_drawn_as_colours_that_use_the_whole_range():
    encoder, params = make_encoder(1)
    images = np.stack([normalised(photograph(seed)) for seed in range(20)])
    components, less_blank = pca_columns(encoder, params, images).values()
    grey = np.zeros((1, *SHAPE), np.float32)
    tokens, blank = (  # after the final norm, without the cls token
        np.asarray(jax.jit(encoder.apply)({'params': params}, x))[:, 1:] for x in (images, grey)
    )
    check_colours(components, tokens)
    check_colours(less_blank, tokens - blank)
    assert (components != less_blank).any()


def test_too_few_patches_for_three_components_are_told():
    with pytest.raises(UserError, match='2: give more images'):
        principal_components(np.ones((1, 1, 2, 8)))


# Reading -----------------------------------------------------------------------------------------


def test_images_are_read_as_evaluation_sees_them(tmp_path):
    paths = []
    for number, size in enumerate([(30, 20), (16, 48)]):
        paths.append(str(tmp_path / f'{number}.png'))
        Image.fromarray(photograph(number)).resize(size).save(paths[-1])
    found = read_images(paths, image_size=(12, 8), channels=3, crop_share=1.0)
    for path, image in zip(paths, found, strict=True):
        picture = Image.open(path)
        scale = max(12 / picture.height, 8 / picture.width)
        size = int(picture.width * scale), int(picture.height * scale)
        resized = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = round((size[0] - 8) / 2), round((size[1] - 12) / 2)
        expected = np.asarray(resized.crop((left, top, left + 8, top + 12)))
        np.testing.assert_array_equal(image, expected)


def test_no_images_a_missing_one_and_one_that_is_none_are_told(tmp_path):
    options = dict(image_size=(8, 8), channels=3)
    with pytest.raises(UserError, match='no image'):
        read_images([], **options)
    with pytest.raises(UserError, match='missing.png cannot be read'):
        read_images([str(tmp_path / 'missing.png')], **options)
    with pytest.raises(UserError, match='cannot be read: it is not a regular file'):
        read_images([str(tmp_path)], **options)
    text = tmp_path / 'text.png'
    text.write_text('no picture')
    with pytest.raises(UserError, match='text.png cannot be read as an image'):
        read_images([str(text)], **options)
