"""The classifier against timm's ViT and PyTorch's batch norm: `tests/golden/make_vit.py`."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit
from helpers.commands import ROOT
from helpers.models import make_mae
from helpers.slow import slow_after

from mae_jax.errors import UserError
from mae_jax.models.classifier import BatchNorm, Classifier, drop_path_scale

GOLDEN = ROOT / 'tests/golden'
TINY = dict(patch_size=2, width=12, depth=3, heads=3, num_classes=5)


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / 'vit.npz') as arrays:
        return dict(arrays)


def build(**options) -> Classifier:
    return Classifier(vit.PATCH_SIZE, vit.WIDTH, vit.DEPTH, vit.HEADS, vit.CLASSES, **options)


@cache
def tiny(**options) -> tuple[Classifier, np.ndarray, dict]:
    """(model, images, its initial variables)."""
    model = Classifier(**(TINY | options))
    images = np.random.RandomState(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    return model, images, jax.jit(model.init)(jax.random.key(0), images)


@pytest.mark.parametrize('grid', [vit.GRID, vit.RESIZED_GRID])
@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_twelve_blocks_give_the_logits_of_timm(pool, grid):
    """At 224 pixels, and at 288 with positions resized by PyTorch."""
    params = vit.to_tree(vit.weights(pool))
    if grid == vit.RESIZED_GRID:
        params['encoder']['pos_embed'] = golden()['pos_embed']
    logits = jax.jit(build(pool=pool).apply)({'params': params}, vit.images(grid))
    np.testing.assert_allclose(logits, golden()[f'{pool}/{grid}'], atol=1e-5)


@pytest.mark.parametrize('options', [{}, {'scan': True}, {'scan': True, 'remat': 'block'}])
def test_dropped_branches_give_the_logits_of_timm(options):
    """Rates per block, what is dropped, and how the rest is scaled are timm's own."""
    model = build(drop_path=vit.DROP_PATH, **options)
    params = vit.to_tree(vit.weights('mean'))
    logits = jax.jit(model.apply)({'params': params}, vit.images(vit.GRID), vit.path_noise())
    np.testing.assert_allclose(logits, golden()['mean/dropped'], atol=1e-5)


def test_batch_norm_follows_pytorch():
    """Outputs and running statistics over batches of several sizes, then evaluation."""
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), jnp.zeros((2, vit.WIDTH)), train=True)
    np.testing.assert_array_equal(variables['batch_stats']['mean'], 0)
    np.testing.assert_array_equal(variables['batch_stats']['var'], 1)
    batches = vit.feature_batches()
    train = partial(norm.apply, train=True, mutable='batch_stats')
    for i, features in enumerate(batches):
        output, variables = jax.jit(train)(variables, features)
        np.testing.assert_allclose(output, golden()[f'batch_norm/{i}/output'], atol=1e-5, rtol=1e-5)
        for name, value in variables['batch_stats'].items():
            np.testing.assert_allclose(value, golden()[f'batch_norm/{i}/{name}'], rtol=1e-5)
    output = norm.apply(variables, batches[-1], train=False)
    np.testing.assert_allclose(output, golden()['batch_norm/evaluation'], atol=1e-5, rtol=1e-5)


def test_batch_statistics_are_those_of_the_global_batch():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    features = np.random.RandomState(0).normal(size=(16, 4)).astype(np.float32)
    features *= np.arange(16)[:, None]  # each device's rows have another deviation
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    train = jax.jit(partial(BatchNorm().apply, train=True, mutable='batch_stats'))
    output, variables = train({}, jax.device_put(features, rows))
    expected = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(
        variables['batch_stats']['var'], 0.9 + 0.1 * features.var(0, ddof=1), rtol=1e-5
    )


def test_batch_norm_stands_between_features_and_head():
    model, images, variables = tiny(pool='cls', batch_norm=True, head_std=0.01)
    assert variables['params'].keys() == {'encoder', 'head'}
    features = jax.jit(partial(model.apply, method='features'))(variables, images)
    train = jax.jit(partial(model.apply, train=True, mutable='batch_stats'))
    logits, updated = train(variables, images)
    normal = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    head = variables['params']['head']
    np.testing.assert_allclose(logits, normal @ head['kernel'] + head['bias'], atol=1e-5)
    (statistics,) = updated['batch_stats'].values()
    np.testing.assert_allclose(statistics['mean'], 0.1 * features.mean(0), rtol=1e-5, atol=1e-7)


def test_one_example_cannot_train_batch_norm():
    with pytest.raises(UserError, match='batch_size'):
        BatchNorm().init(jax.random.key(0), jnp.zeros((1, 3)), train=True)


def test_drop_rates_rise_linearly_and_expectations_stay():
    noise = jax.random.uniform(jax.random.key(0), (20_000, 5, 2))
    scale = np.asarray(drop_path_scale(noise, 0.4))
    assert scale.dtype == np.float32
    rates = np.array([0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose((scale == 0).mean(axis=0), np.stack([rates] * 2, 1), atol=0.01)
    np.testing.assert_allclose(scale.mean(axis=0), np.ones((5, 2)), atol=0.02)
    np.testing.assert_allclose(scale.max(axis=(0, 2)), 1 / (1 - rates), rtol=1e-6)


def test_a_branch_is_dropped_whole_and_for_one_example():
    """The first example loses the MLP of the last block, the second that block's attention."""
    model, images, variables = tiny(drop_path=0.5, head_std=1.0)
    noise = np.full((2, 3, 2), 0.9, np.float32)
    noise[0, 2, 1] = noise[1, 2, 0] = 0.1
    logits = jax.jit(model.apply)(variables, images, noise)

    def without(dropped):
        """A model that drops nothing, whose branches end in weights of 0 or 1 / (1 - rate)."""
        params = jax.tree.map(np.array, variables['params'])
        for i, rate in enumerate((0, 0.25, 0.5)):
            block = params['encoder']['blocks'][f'block_{i}']
            for last in (block['attention']['proj'], block['mlp']['fc2']):
                scale = 0 if i == 2 and last is block[dropped[0]][dropped[1]] else 1 / (1 - rate)
                last |= {name: value * np.float32(scale) for name, value in last.items()}
        return jax.jit(Classifier(**TINY).apply)({'params': params}, images)

    np.testing.assert_allclose(logits[0], without(('mlp', 'fc2'))[0], atol=1e-5)
    np.testing.assert_allclose(logits[1], without(('attention', 'proj'))[1], atol=1e-5)


def test_logits_do_not_depend_on_how_the_batch_is_split():
    model, images, variables = tiny(drop_path=0.5, head_std=1.0)
    noise = np.random.RandomState(0).uniform(size=(2, 3, 2)).astype(np.float32)
    apply = jax.jit(model.apply)
    whole = apply(variables, images, noise)
    halves = [apply(variables, images[i : i + 1], noise[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-6)
    assert np.abs(whole - apply(variables, images)).max() > 1e-3


def test_without_noise_or_without_a_rate_nothing_is_dropped():
    model, images, variables = tiny(head_std=1.0)
    plain = jax.jit(model.apply)(variables, images)
    dropping = Classifier(**TINY, drop_path=0.9)
    np.testing.assert_array_equal(jax.jit(dropping.apply)(variables, images), plain)
    noise = np.zeros((2, 3, 2), np.float32)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, images, noise), plain)


@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_the_encoder_is_the_subtree_of_a_pretrained_model(pool):
    """Names and shapes are equal, except for the final norm, which mean pooling removes."""
    _, images, variables = tiny(pool=pool)
    sizes = {name: TINY[name] for name in ('patch_size', 'width', 'depth', 'heads')}
    mae = make_mae(**sizes, decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.5)
    rngs = {'params': jax.random.key(0), 'mask': jax.random.key(1)}
    pretrained = jax.eval_shape(mae.init, rngs, images)
    expected = pretrained['params']['encoder']
    if pool == 'mean':
        del expected['norm']
    shapes = partial(jax.tree.map, jnp.shape)
    assert shapes(variables['params']['encoder']) == shapes(expected)
    names = {'encoder', 'head'} | ({'fc_norm'} if pool == 'mean' else set())
    assert variables['params'].keys() == names
    assert variables.keys() == {'params'}


@pytest.mark.parametrize('head_std', [2e-5, 0.01])
def test_the_head_starts_as_the_original(head_std):
    model = Classifier(4, 192, 0, 3, 1000, head_std=head_std)
    head = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']['head']
    assert head['kernel'].shape == (192, 1000)
    np.testing.assert_allclose(np.std(head['kernel']), head_std, rtol=0.02)
    assert np.abs(head['kernel']).max() > 3.5 * head_std  # a normal that nobody cut
    assert not head['bias'].any()


def test_the_heads_deviation_is_the_original_by_default():
    assert Classifier(**TINY).head_std == 2e-5


@pytest.mark.parametrize('pool', slow_after(1, ['mean', 'cls']))
def test_bfloat16_ends_at_the_features(pool):
    plain, images, variables = tiny(pool=pool, head_std=1.0)
    model = Classifier(**TINY, pool=pool, head_std=1.0, dtype=jnp.bfloat16, drop_path=0.5)
    noise = np.full((2, 3, 2), 0.9, np.float32)
    init = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {np.dtype('float32')}
    assert jax.eval_shape(model.apply, variables, images, noise).dtype == jnp.float32
    features, expected = (
        jax.jit(partial(m.apply, method='features'))(variables, images) for m in (model, plain)
    )
    assert features.dtype == jnp.float32
    assert 0 < np.abs(features - expected).max() < 0.1


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('pool', 'max', r"model\.pool='max'.*mean \| cls"),
        ('drop_path', 1.0, r'model\.drop_path=1\.0'),
        ('drop_path', -0.1, r'model\.drop_path=-0\.1'),
        ('patch_size', 5, r'model\.patch_size'),
    ],
)
def test_what_does_not_work_is_refused_by_name(field, value, message):
    model = Classifier(**(TINY | {field: value}))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 4, 6, 3)))
