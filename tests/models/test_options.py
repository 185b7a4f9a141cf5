"""Options of the encoder: what each adds, leaves out or keeps as it is, and which are refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vitdet
from flax import traverse_util
from helpers.commands import ROOT
from helpers.slow import slow_after

from mae_jax.errors import UserError
from mae_jax.interop.resize import resize_encoder
from mae_jax.models.attention import dispatch
from mae_jax.models.attention.cpu import cpu_attention
from mae_jax.models.attention.plain import plain_attention
from mae_jax.models.classifier import Classifier
from mae_jax.models.flops import blocks_flops, encoder_flops
from mae_jax.models.options import EncoderOptions
from mae_jax.models.relative import FactoredBias
from mae_jax.models.vit import Encoder
from mae_jax.training.sharding import make_mesh, on_mesh, parameter_shardings, put_batch

SIZES = dict(patch_size=2, width=16, depth=3, heads=2)
BEIT = EncoderOptions(
    relative_positions='beit', layer_scale=0.5, key_bias=False, absolute_positions=False
)
VITDET = EncoderOptions(relative_positions='vitdet', cls_token=False, window=2, global_blocks=(1,))
ALL = {'beit': BEIT, 'vitdet': VITDET}


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


IMAGES = draw(2, 6, 10, 3)


@cache
def random_params(options: EncoderOptions) -> dict:
    """All parameters random: none is zero or one by its initial value."""
    shapes = jax.eval_shape(Encoder(**SIZES, options=options).init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes['params'])


def names(options: EncoderOptions) -> set[str]:
    return set(traverse_util.flatten_dict(random_params(options), sep='/'))


def run(options: EncoderOptions, params: dict, images=IMAGES, **fields):
    encoder = Encoder(**SIZES, options=options, **fields)
    return jax.jit(encoder.apply)({'params': params}, images)


def test_each_option_adds_and_leaves_out_its_own_parameters():
    default = names(EncoderOptions())
    blocks = [f'blocks/block_{i}' for i in range(3)]
    assert names(EncoderOptions(relative_positions='beit')) - default == {
        f'{block}/attention/relative_table' for block in blocks
    }
    assert names(EncoderOptions(layer_scale=0.1)) - default == {
        f'{block}/{branch}_scale' for block in blocks for branch in ('attention', 'mlp')
    }
    assert names(EncoderOptions(key_bias=False)) == default
    assert default - names(EncoderOptions(absolute_positions=False)) == {'pos_embed'}
    assert default - names(EncoderOptions(cls_token=False)) == {'cls_token'}
    assert names(EncoderOptions(cls_token=False, window=2)) == default - {'cls_token'}
    assert names(VITDET) - default == {
        f'{block}/attention/rel_pos_{axis}' for block in blocks for axis in 'hw'
    }


def test_shapes_follow_the_grid_and_the_windows():
    attention = [random_params(VITDET)['blocks'][f'block_{i}']['attention'] for i in range(3)]
    assert [x['rel_pos_h'].shape for x in attention] == [(3, 8), (5, 8), (3, 8)]
    assert [x['rel_pos_w'].shape for x in attention] == [(3, 8), (9, 8), (3, 8)]
    table = random_params(BEIT)['blocks']['block_0']['attention']['relative_table']
    assert table.shape == (5 * 9 + 3, 2)
    assert random_params(VITDET)['pos_embed'].shape == (1, 15, 16)


@pytest.mark.parametrize('kind', ['beit', 'vitdet'])
def test_relative_positions_and_layer_scale_of_one_change_nothing_at_first(kind):
    plain = EncoderOptions(cls_token=kind == 'beit')
    options = EncoderOptions(kind, layer_scale=1.0, cls_token=kind == 'beit')
    key = jax.random.key(0)
    params, expected = (
        jax.jit(Encoder(**SIZES, options=o).init)(key, IMAGES)['params'] for o in (options, plain)
    )
    np.testing.assert_array_equal(run(options, params), run(plain, expected))


def test_windows_see_their_own_patches_alone():
    options = EncoderOptions(cls_token=False, window=2)
    params = random_params(options)
    changed = IMAGES.copy()
    changed[:, 4:, 8:] += 1  # the last patch, in a window of its own
    moved = np.abs(run(options, params) - run(options, params, changed)).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), [14])
    options = EncoderOptions(cls_token=False, window=2, global_blocks=(1,))
    moved = np.abs(run(options, params) - run(options, params, changed)).max(axis=(0, 2)) > 0
    assert moved.all()


def test_layer_scale_multiplies_what_each_branch_adds():
    options = EncoderOptions(layer_scale=0.1)
    params = random_params(options)
    unscaled = traverse_util.flatten_dict(params, sep='/')
    for name in [n for n in unscaled if n.endswith('_scale')]:
        layer = 'attention/proj' if 'attention_scale' in name else 'mlp/fc2'
        path, scale = name.rpartition('/')[0], unscaled.pop(name)
        for leaf in ('kernel', 'bias'):
            unscaled[f'{path}/{layer}/{leaf}'] = unscaled[f'{path}/{layer}/{leaf}'] * scale
    unscaled = traverse_util.unflatten_dict(unscaled, sep='/')
    expected = run(EncoderOptions(), unscaled)
    np.testing.assert_allclose(run(options, params), expected, rtol=1e-4, atol=1e-5)


def test_the_bias_of_keys_is_zero_and_gets_no_gradient():
    options = EncoderOptions(key_bias=False)
    params = random_params(options)
    biases = [params['blocks'][f'block_{i}']['attention']['qkv']['bias'] for i in range(3)]
    kept = jax.tree.map(np.copy, params)
    for i, bias in enumerate(biases):
        kept['blocks'][f'block_{i}']['attention']['qkv']['bias'] = bias * np.repeat([1, 0, 1], 16)
    encoder = Encoder(**SIZES, options=options)
    loss = jax.jit(jax.grad(lambda p: (encoder.apply({'params': p}, IMAGES) ** 3).sum()))
    gradient = loss(params)
    np.testing.assert_allclose(
        run(options, params), run(EncoderOptions(), kept), rtol=1e-5, atol=1e-5
    )
    thirds = gradient['blocks']['block_1']['attention']['qkv']['bias'].reshape(3, 16)
    assert not thirds[1].any()
    assert thirds[0].all() and thirds[2].all()


@cache
def loss_and_gradient(kind: str, **fields):
    encoder = Encoder(**SIZES, options=ALL[kind], frozen_blocks=1, **fields)

    def loss(params):
        outputs = encoder.apply({'params': params}, IMAGES, blocks=(0, 2), final_norm=False)
        return sum((x**2).sum() for x in outputs)

    return jax.jit(jax.value_and_grad(loss))(random_params(ALL[kind]))


@pytest.mark.parametrize('fields', [{'scan': True, 'remat': 'block'}, {'attention': 'auto'}])
@pytest.mark.parametrize('kind', ALL)
def test_scan_remat_and_attention_compute_the_same_with_gradients(kind, fields):
    expected, actual = loss_and_gradient(kind), loss_and_gradient(kind, **fields)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3 * np.abs(b).max() + 1e-6)


@pytest.mark.parametrize('scan', slow_after(1, [True, False]))
def test_tables_that_are_split_over_devices_give_the_same_tokens(scan):
    encoder = Encoder(**(SIZES | {'depth': 1}), options=BEIT, scan=scan)
    images = draw(8, 48, 48, 3)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    expected = jax.jit(encoder.apply)(variables, images)
    mesh = make_mesh(fsdp=4)
    layouts = parameter_shardings(mesh, variables)
    table = layouts['params']['blocks']['block_0']['attention']['relative_table']
    assert not table.is_fully_replicated
    split = jax.tree.map(jax.device_put, variables, layouts)
    actual = jax.jit(on_mesh(encoder.apply, mesh))(split, put_batch(mesh, {'x': images})['x'])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ALL)
def test_bfloat16_computes_the_same_to_its_rounding(kind):
    options, params = ALL[kind], random_params(ALL[kind])
    expected = run(options, params)
    actual = run(options, params, dtype=jnp.bfloat16)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(np.float32), expected, atol=0.15)


@pytest.mark.parametrize('factored', [False, True])
@pytest.mark.parametrize('implementation', ['auto', 'xla', 'cudnn', 'pallas'])
@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_a_bias_is_never_left_out(monkeypatch, platform, implementation, factored):
    """Kernels do not take one, and plain attention replaces them."""
    monkeypatch.setattr(dispatch, 'platform', lambda: platform)
    qkv = jnp.asarray(draw(2, 5, 48), jnp.bfloat16)
    factors = FactoredBias(draw(2, 5, 2, 3), draw(5, 3))
    bias = jnp.einsum('bqhe,ke->bhqk', *factors)
    mixed, _ = dispatch.attend(qkv, 2, implementation, factors if factored else bias)
    expected, _ = plain_attention(qkv, 2, bias)
    np.testing.assert_allclose(mixed, expected, atol=0.03)
    assert np.abs(mixed - plain_attention(qkv, 2)[0]).max() > 0.1


def test_attention_with_a_bias_is_the_softmax_of_the_sum():
    qkv, bias = draw(2, 5, 24), draw(2, 2, 5, 5)
    q, k, v = np.moveaxis(qkv.reshape(2, 5, 3, 2, 4), 2, 0)
    logits = np.einsum('bqhd,bkhd->bhqk', q, k) / 2 + bias
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum('bhqk,bkhd->bqhd', weights, v).reshape(2, 5, 8)
    for attention in (plain_attention, cpu_attention):
        mixed, given = attention(jnp.asarray(qkv), 2, jnp.asarray(bias))
        np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(given, weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('case', vitdet.GRIDS)
def test_windows_and_decomposed_positions_are_transformers_vitdet(case):
    """Positions are resized from another grid, absolute ones bicubic, relative ones linearly."""
    options = EncoderOptions(
        relative_positions='vitdet',
        cls_token=False,
        window=vitdet.WINDOW,
        global_blocks=vitdet.GLOBAL,
    )
    encoder = Encoder(
        vitdet.PATCH_SIZE, vitdet.WIDTH, vitdet.DEPTH, vitdet.HEADS, has_norm=False, options=options
    )
    flat = traverse_util.flatten_dict(vitdet.to_tree(vitdet.weights()), sep='/')
    grid = vitdet.GRIDS[case]
    resized = resize_encoder({'pos_embed': flat['pos_embed']}, vitdet.PRETRAINED, grid, options)
    flat |= resize_encoder(flat | resized, grid, grid, options)
    params = traverse_util.unflatten_dict(flat | resized, sep='/')
    features = jax.jit(partial(encoder.apply, method='features', output='map'))
    maps = features({'params': params}, vitdet.images(case))
    with np.load(ROOT / 'tests/golden/vitdet.npz') as golden:
        np.testing.assert_allclose(maps, golden[case], atol=2e-5)


def test_the_golden_vitdet_is_that_of_the_library_that_is_installed():
    make_vitdet = pytest.importorskip('make_vitdet')
    with np.load(ROOT / 'tests/golden/vitdet.npz') as golden:
        for case in vitdet.GRIDS:
            features = make_vitdet.features(make_vitdet.build(), case)
            np.testing.assert_allclose(features, golden[case], atol=1e-6)


def test_outputs_without_a_cls_token_are_those_of_the_patches():
    params = random_params(VITDET)
    encoder = Encoder(**SIZES, options=VITDET)

    def features(output):
        apply = jax.jit(partial(encoder.apply, method='features', output=output))
        return apply({'params': params}, IMAGES)

    tokens = features('tokens')
    assert tokens.shape == (2, 15, 16)
    np.testing.assert_allclose(features('map'), tokens.reshape(2, 3, 5, 16), atol=1e-6)
    np.testing.assert_allclose(features('mean'), tokens.mean(axis=1), atol=1e-6)
    with pytest.raises(UserError, match='no cls token'):
        features('cls')


def test_mean_pooling_leaves_no_patch_out():
    model = Classifier(**SIZES, num_classes=3, head_std=1.0, options=VITDET)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    features = jax.jit(partial(model.apply, method='features'))
    changed = IMAGES.copy()
    changed[:, :2, :2] += 1  # the first patch
    pooled = [features(variables, x) for x in (IMAGES, changed)]
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-3
    with pytest.raises(UserError, match=r"model.pool='cls' needs a cls token"):
        Classifier(**SIZES, num_classes=3, pool='cls', options=VITDET).init(
            jax.random.key(0), IMAGES
        )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(relative_positions='swin'), "relative_positions='swin' is unknown: use none | beit"),
        (dict(relative_positions='vitdet'), "relative_positions='vitdet' is for patches alone"),
        (dict(window=2), 'model.window=2 is for patches alone: add model.cls_token=False'),
        (dict(window=-1), 'model.window=-1 must be at least 0'),
        (dict(global_blocks=(3,)), r'there is no block 3 among the 3'),
        (dict(layer_scale=float('nan')), 'model.layer_scale=nan must be a number'),
    ],
)
def test_options_that_do_not_work_are_refused(options, message):
    with pytest.raises(UserError) as refusal:
        Encoder(**SIZES, options=EncoderOptions(**options)).init(jax.random.key(0), IMAGES)
    assert message in str(refusal.value)


@pytest.mark.parametrize('kind', ALL)
def test_hidden_patches_and_images_of_another_size_are_refused(kind):
    encoder, params = Encoder(**SIZES, options=ALL[kind]), random_params(ALL[kind])
    with pytest.raises(UserError, match='for whole images'):
        encoder.apply({'params': params}, IMAGES, np.zeros((2, 4), np.int32))
    with pytest.raises(UserError, match=r'Images of 10 x 10 pixels.* give mae_jax.load_encoder'):
        encoder.apply({'params': params}, draw(1, 10, 10, 3), method='features')


def test_windows_cost_less_and_their_padding_is_counted():
    grid, width = (8, 8), 16
    default = encoder_flops(range(4), width, grid, EncoderOptions())
    assert default == blocks_flops(4, width, 65)
    options = EncoderOptions(cls_token=False, window=3, global_blocks=(1,))
    tokens, padded = 64, 81
    window = 16 * tokens * width**2 + padded * (8 * width**2 + 4 * 9 * width)
    assert encoder_flops(range(2), width, grid, options) == window + blocks_flops(1, width, 64)
