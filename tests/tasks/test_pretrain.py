"""The pretraining task: FLOPs against the compiler's count, evaluation against the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.metrics import sums_of
from helpers.models import make_mae

from mae_jax.pretext.tokenizers import Tokenizer
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import sharding as mesh_lib

MODEL = dict(
    patch_size=4, width=128, depth=2, heads=4, decoder_width=64, decoder_depth=1, decoder_heads=4
)

TINY = MODEL | dict(width=16, depth=1, decoder_width=16, decoder_depth=1)


@pytest.fixture(scope='module')
def task():
    return Pretrain(make_mae(**MODEL), (32, 24), mean=(0.5, 0.4), std=(0.25, 0.3))


@pytest.fixture(scope='module')
def params(task):
    return task.init(jax.random.key(0))[0]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 24, 2), np.uint8)


@pytest.mark.parametrize(
    'fields',
    [
        {},
        {'encoder_mask_tokens': True},
        {'decoder_depth': 0},
        {'target': 'token', 'target_fields': {'codes': 300}},
        {'target': 'pca', 'target_fields': {'components': 5}},
    ],
)
def test_flops_agree_with_the_compilers_count(fields):
    zeros = Tokenizer(300, lambda _, images: jnp.zeros((len(images), 48), int), {}, dict)
    task = Pretrain(
        make_mae(**MODEL | fields),
        (32, 24),
        mean=(0.5, 0.4),
        std=(0.25, 0.3),
        tokenizer=zeros if fields.get('target') == 'token' else None,
    )
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    batch = {'image': jnp.zeros((4, 32, 24, 2)), 'noise': jnp.zeros((4, task.num_patches))}
    state = {'tokenizer': {}}
    gradient = jax.jit(jax.grad(lambda p: task.loss(p, state, batch, jax.random.key(0))[0]))
    counted = gradient.lower(params).cost_analysis()['flops'] / 4
    # The compiler counts element-wise work as well: some percent at this width.
    assert task.flops_per_image() == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize(('strategy', 'ratio'), [('block', 0.5), ('grid', 0.75)])
def test_masks_do_not_depend_on_how_many_devices_draw_them(strategy, ratio):
    model = make_mae(**MODEL | {'strategy': strategy, 'mask_ratio': ratio})
    task = Pretrain(model, (32, 24), mean=(0.5, 0.4), std=(0.25, 0.3))
    noise = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = mesh_lib.make_mesh(devices=devices)
        batch = mesh_lib.put_batch(mesh, {'image': images(8)})
        prepare = jax.jit(task.prepare, out_shardings=mesh_lib.batch_sharding(mesh))
        noise.append(np.asarray(prepare(batch, jax.random.key(0))['noise']))
    assert len(devices) == 8
    np.testing.assert_array_equal(*noise)


def test_flops_of_vit_base_are_those_measured():
    model = make_mae(patch_size=16, width=768, depth=12, heads=12)
    base = Pretrain(model, (224, 224), (0.5,) * 3, (0.5,) * 3)
    assert base.flops_per_image() == pytest.approx(58.9e9, rel=0.02)  # the compiler's


@pytest.mark.slow
def test_evaluation_is_the_same_whatever_the_batches_and_leaves_padding_out(task, params):
    rows = images(6)
    whole = sums_of(task.evaluate(params, {}, {'image': rows, 'valid': np.ones(6, bool)}, 0))
    batches = [
        task.evaluate(params, {}, {'image': rows[:4], 'valid': np.ones(4, bool)}, 0),
        task.evaluate(
            params,
            {},
            {
                'image': np.concatenate([rows[4:], rows[:2]]),
                'valid': np.array([True, True, False, False]),
            },
            4,
        ),
    ]
    parts = [sums_of(batch) for batch in batches]
    assert sum(p['count'] for p in parts) == whole['count'] == 6
    assert sum(p['loss'] for p in parts) == pytest.approx(float(whole['loss']), rel=1e-5)


def brightness(_, images):
    """Ids of patches of 4 x 4 by what their first channel shows, of four."""
    cells = images[..., 0].reshape(len(images), 8, 4, 6, 4).mean(axis=(2, 4))
    return (cells * 4).astype(int).reshape(len(images), 48)


@pytest.mark.slow
def test_tokens_are_made_of_the_images_as_they_were_loaded():
    model = make_mae(**TINY | {'target': 'token', 'target_fields': {'codes': 4}})
    tokenizer = Tokenizer(4, brightness, {}, dict)
    task = Pretrain(model, (32, 24), (0.5, 0.1), (0.25, 0.9), tokenizer=tokenizer)
    rows = (images(2) * np.linspace(0, 1, 24)[:, None]).astype(np.uint8)
    params, state = jax.jit(task.init)(jax.random.key(0))
    batch = task.prepare({'image': rows}, jax.random.key(0))
    output = jax.jit(model.apply)({'params': params}, batch['image'], batch['noise'])
    ids = np.empty((2, 48), int)
    for place in np.ndindex(2, 8, 6):
        b, y, x = place
        cell = rows[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4, 0]
        ids[b, 6 * y + x] = int(cell.mean() / 255 * 4)
    assert len(np.unique(ids)) > 1
    odds = np.exp(np.float64(output.prediction))
    chosen = np.take_along_axis(odds, ids[..., None], -1)[..., 0] / odds.sum(axis=-1)
    expected = -np.log(chosen)[np.asarray(output.mask)].mean()
    np.testing.assert_allclose(
        jax.jit(task.loss)(params, state, batch, jax.random.key(0))[0], expected, rtol=1e-4
    )
    whole = jax.jit(task.evaluate)(params, state, {'image': rows, 'valid': np.ones(2, bool)}, 0)
    assert np.isfinite(whole.loss.total)


def test_evaluation_counts_the_patches_that_the_loss_does_and_valid_rows():
    task = Pretrain(
        make_mae(**TINY, target_fields={'loss_on': 'all'}),
        (32, 24),
        mean=(0.5, 0.4),
        std=(0.25, 0.3),
    )
    params = jax.jit(task.init)(jax.random.key(0))[0]
    batch = {'image': images(3), 'valid': np.array([True, True, False])}
    errors = np.asarray(jax.jit(task.reconstruct)(params, batch).errors)
    actual = sums_of(jax.jit(task.evaluate)(params, {}, batch, 0))
    assert actual['count'] == 2
    np.testing.assert_allclose(actual['loss'], errors[:2].mean(axis=1).sum(), rtol=1e-5)


def test_images_are_normalised_by_scale_mean_and_std(task):
    rows = images(2)
    prepared = task.prepare({'image': rows}, jax.random.key(0))['image']
    by_hand = (rows / 255.0 - np.array([0.5, 0.4])) / np.array([0.25, 0.3])
    np.testing.assert_allclose(prepared, by_hand, atol=1e-5)
