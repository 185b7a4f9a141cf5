"""Which parameters of a classifier are trained, and what a training step costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from helpers.jaxprs import multiplications
from helpers.slow import slow_after

from configs import finetune_digits
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.tasks import make_task
from mae_jax.tasks.classify import Classify
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.optimizer import make_optimizer
from mae_jax.training.state import abstract_state, initial_state, jit_step, make_step

BLOCK = {f'{norm}/{name}' for norm in ('norm1', 'norm2') for name in ('scale', 'bias')} | {
    f'{dense}/{name}'
    for dense in ('attention/qkv', 'attention/proj', 'mlp/fc1', 'mlp/fc2')
    for name in ('kernel', 'bias')
}
BLOCKS = [{f'encoder/blocks/block_{k}/{name}' for name in BLOCK} for k in range(3)]
EMBEDDING = {
    'encoder/pos_embed',
    'encoder/cls_token',
    'encoder/patch_embed/kernel',
    'encoder/patch_embed/bias',
}
HEAD = {'head/kernel', 'head/bias'}
NORM = {
    'mean': {'fc_norm/scale', 'fc_norm/bias'},
    'cls': {'encoder/norm/scale', 'encoder/norm/bias'},
}
LAST_MLP = {f'encoder/blocks/block_2/mlp/{fc}/{name}' for fc, name in
            [('fc1', 'kernel'), ('fc1', 'bias'), ('fc2', 'kernel'), ('fc2', 'bias')]}  # fmt: skip


def learning(trained: str, pool: str) -> set[str]:
    """The parameters of three blocks that learn, written out."""
    return {
        'all': EMBEDDING | BLOCKS[0] | BLOCKS[1] | BLOCKS[2] | NORM[pool] | HEAD,
        '2': BLOCKS[1] | BLOCKS[2] | NORM[pool] | HEAD,
        '1': BLOCKS[2] | NORM[pool] | HEAD,
        '0.5': LAST_MLP | NORM[pool] | HEAD,
        '0': NORM[pool] | HEAD,
        'head': HEAD,
    }[trained]


TRAINED = ('all', '2', '1', '0.5', '0', 'head')


def digits_task(trained: str, **model) -> Classify:
    """Three blocks on 8x8 digits, from a config, as a run makes it."""
    config = finetune_digits.get_config()
    config.trained = trained
    config.model.update(model)
    names = [str(digit) for digit in range(10)]
    return make_task(config, ArraySource(np.zeros((1, 8, 8, 1)), np.zeros(1), names))


def adamw() -> optax.GradientTransformation:
    betas = dict(b1=0.9, b2=0.999, eps=1e-8)
    return make_optimizer('adamw', lambda _: 1e-3, **betas, weight_decay=0.05)


def digits(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1), np.uint8)
    return {'image': images, 'label': rng.integers(0, 10, count, np.int32)}


def flat(tree) -> dict[str, np.ndarray]:
    leaves = traverse_util.flatten_dict(tree, sep='/')
    return {name: leaf for name, leaf in leaves.items() if not isinstance(leaf, optax.MaskedNode)}


@pytest.mark.parametrize('pool', ['mean', 'cls'])
@pytest.mark.parametrize('trained', TRAINED)
def test_what_learns_is_what_was_asked_for_and_nothing_else_has_optimiser_state(trained, pool):
    task = digits_task(trained, width=16, pool=pool)
    state = jax.eval_shape(lambda: initial_state(task, adamw(), seed=0))
    expected = learning(trained, pool)
    assert {name for name in flat(state.params) if task.is_trained(name)} == expected
    for moment in ('mu', 'nu'):
        assert set(flat(optax.tree_utils.tree_get(state.opt_state, moment))) == expected


@pytest.mark.parametrize('trained', ['all', '0.5'])
def test_what_learns_moves_along_its_gradient_and_the_rest_stays(trained):
    """Plain descent without decay: what moves is what has a gradient. Positions have one, too."""
    task = digits_task(trained, width=16, pool='cls', head_std=1.0)
    state = jax.jit(lambda: initial_state(task, optax.sgd(1.0), seed=0))()
    after, _ = jax.jit(make_step(task, optax.sgd(1.0), seed=0))(state, digits(8))
    before, after = flat(jax.device_get(state.params)), flat(jax.device_get(after.params))
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved == learning(trained, 'cls')


BATCH = 16


@functools.cache
def traced(trained: str, scan: bool = False):
    """(task, the step as jaxpr, the step lowered for the compiler); nothing is compiled."""
    task = digits_task(trained, width=128, drop_path=0.1, scan=scan)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    state = abstract_state(task, adamw(), mesh)
    step = jit_step(make_step(task, adamw(), seed=0), mesh, state)
    traced = step.trace(state, jax.eval_shape(lambda: digits(BATCH)))
    return task, traced.jaxpr, traced.lower()


def flops(trained: str) -> float:
    """The compiler's count for the whole step, one image."""
    return traced(trained)[2].cost_analysis()['flops'] / BATCH


@pytest.mark.slow
def test_a_step_costs_less_the_fewer_blocks_learn_and_a_probe_little_more_than_a_forward_pass():
    task, _, _ = traced('head')
    images = jnp.zeros((BATCH, 8, 8, 1))
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    apply = jax.jit(lambda params: task.model.apply({'params': params}, images))
    forward = apply.lower(params).cost_analysis()['flops'] / BATCH
    assert flops('head') < 1.02 * forward
    assert flops('0') < 1.02 * forward
    # A backward pass is two forward ones, and a block a third of the model; the first layer of an
    # MLP alone needs no gradient of its input, which leaves half a block.
    for trained, blocks in [('0.5', 0.5), ('1', 1), ('2', 2), ('all', 3)]:
        assert flops(trained) / forward == pytest.approx(1 + 2 * blocks / 3, rel=0.05)


@pytest.mark.parametrize('trained', slow_after(1, ['1', 'all', 'head']))
def test_a_scanned_step_costs_no_more(trained):
    plain, scanned = (multiplications(traced(trained, scan)[1].jaxpr) for scan in (False, True))
    assert scanned == plain > 0


@pytest.mark.parametrize('trained', slow_after(1, reversed(TRAINED)))
def test_flops_agree_with_the_compilers_count(trained):
    # It counts what is no matrix product as well.
    assert traced(trained)[0].flops_per_image() == pytest.approx(flops(trained), rel=0.04)


def test_flops_of_cached_features_are_the_heads():
    task = digits_task('head', width=128)
    assert dataclasses.replace(task, caches_features=True).flops_per_image() == 3 * 2 * 128 * 10
