"""The pretraining task: FLOPs against the compiler's count, evaluation against the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models.mae import MAE
from mae_jax.tasks.pretrain import Pretrain

MODEL = dict(
    patch_size=4, width=128, depth=4, heads=4, decoder_width=64, decoder_depth=2, decoder_heads=4
)


@pytest.fixture(scope='module')
def task():
    return Pretrain(MAE(**MODEL), (32, 24), mean=(0.5, 0.4), std=(0.25, 0.3))


@pytest.fixture(scope='module')
def params(task):
    return task.init(jax.random.key(0))[0]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 24, 2), np.uint8)


def test_flops_agree_with_the_compilers_count(task, params):
    batch = {'image': jnp.zeros((4, 32, 24, 2)), 'noise': jnp.zeros((4, task.num_patches))}
    gradient = jax.jit(jax.grad(lambda p: task.loss(p, {}, batch, jax.random.key(0))[0]))
    counted = gradient.lower(params).compile().cost_analysis()['flops'] / 4
    # The compiler counts element-wise work as well: some percent at this width.
    assert task.flops_per_image() == pytest.approx(counted, rel=0.15)


def test_flops_of_vit_base_are_those_measured():
    model = MAE(patch_size=16, width=768, depth=12, heads=12)
    base = Pretrain(model, (224, 224), (0.5,) * 3, (0.5,) * 3)
    assert base.flops_per_image() == pytest.approx(58.9e9, rel=0.02)  # the compiler's


@pytest.mark.slow
def test_evaluation_is_the_same_whatever_the_batches_and_leaves_padding_out(task, params):
    rows = images(6)
    whole = task.evaluate(params, {}, {'image': rows, 'valid': np.ones(6, bool)}, 0)
    parts = [
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
    assert sum(p['count'] for p in parts) == whole['count'] == 6
    assert sum(p['loss'] for p in parts) == pytest.approx(float(whole['loss']), rel=1e-5)


def test_images_are_normalised_by_scale_mean_and_std(task):
    rows = images(2)
    prepared = task.prepare({'image': rows}, jax.random.key(0))['image']
    by_hand = (rows / 255.0 - np.array([0.5, 0.4])) / np.array([0.25, 0.3])
    np.testing.assert_allclose(prepared, by_hand, atol=1e-5)
