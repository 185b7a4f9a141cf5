"""The jitted step: one device or eight, whole batches or accumulated ones, give one run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from helpers.models import make_mae
from helpers.optimization import STEPS, make_tx

from mae_jax.keys import key_for
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.optimizer import make_optimizer, split_params
from mae_jax.training.state import (
    abstract_state,
    create_state,
    evaluation_params,
    initial_state,
    jit_step,
    make_step,
    replace_params,
)

BATCH = 16


def make_task(**fields) -> Pretrain:
    model = make_mae(
        patch_size=4, width=64, depth=1, heads=4,
        decoder_width=32, decoder_depth=1, decoder_heads=4, **fields,
    )  # fmt: skip
    return Pretrain(model, (16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def batch_at(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {'image': rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8)}


def run(devices: int, fsdp: int = 1, accumulate: int = 1, steps: int = STEPS, **fields):
    """Losses of every step, and the final state."""
    task, tx = make_task(**fields), make_tx()
    mesh = mesh_lib.make_mesh(fsdp, jax.devices()[:devices])
    state = create_state(task, tx, mesh, seed=3)
    step = jit_step(make_step(task, tx, seed=3, accumulate=accumulate), mesh, state)
    losses = []
    for number in range(steps):
        state, metrics = step(state, mesh_lib.put_batch(mesh, batch_at(number)))
        losses.append(float(metrics['loss']))
    return np.array(losses), state


@functools.cache
def one_device():
    return run(devices=1)


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [1, 4, 8])
def test_eight_devices_have_the_losses_of_one(fsdp):
    losses, state = run(devices=8, fsdp=fsdp)
    np.testing.assert_allclose(losses, one_device()[0], atol=1e-5)
    kernel = state.params['encoder']['blocks']['block_0']['mlp']['fc1']['kernel']
    moment = optax.tree_utils.tree_get(state.opt_state, 'mu')
    moment = moment['encoder']['blocks']['block_0']['mlp']['fc1']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    assert moment.addressable_shards[0].data.size == moment.size // 8  # whatever `fsdp`


@pytest.mark.slow
def test_the_step_under_pmap_is_the_same():
    """Data parallelism written out by hand: each device its rows, gradients averaged."""
    task, tx = make_task(), make_tx()
    losses, _ = one_device()
    state = initial_state(task, tx, seed=3)

    @functools.partial(jax.pmap, axis_name='devices')
    def step(state, rows):
        trained, frozen = split_params(state.params, task.is_trained)

        def loss(trained):
            params = {part: trained[part] | frozen[part] for part in ('encoder', 'decoder')}
            return task.loss(params, {}, rows, jax.random.key(0))[0]

        value, grads = jax.lax.pmean(jax.value_and_grad(loss)(trained), 'devices')
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        params = {part: trained[part] | frozen[part] for part in trained}
        return state.replace(params=params, opt_state=opt_state, step=state.step + 1), value

    state = jax.tree.map(lambda x: jnp.stack([x] * 8), state)
    prepare = jax.jit(task.prepare)
    for number in range(STEPS):
        rows = prepare(batch_at(number), key_for(3, 'train', number))
        rows = jax.tree.map(lambda x: x.reshape(8, BATCH // 8, *x.shape[1:]), rows)
        state, value = step(state, rows)
        assert float(value[0]) == pytest.approx(losses[number], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_accumulated_micro_batches_equal_the_whole_batch(accumulate):
    losses, state = run(devices=1, accumulate=accumulate)
    np.testing.assert_allclose(losses, one_device()[0], atol=1e-5)
    ours, whole = (traverse_util.flatten_dict(s.params) for s in (state, one_device()[1]))
    for path in ours:
        if path[-2:] != ('qkv', 'bias'):  # the key's gradient is rounding, which Adam scales up
            np.testing.assert_allclose(ours[path], whole[path], atol=1e-4, err_msg=str(path))


@pytest.mark.slow
def test_accumulation_over_several_devices_equals_the_whole_batch():
    losses, _ = run(devices=4, fsdp=2, accumulate=2)
    np.testing.assert_allclose(losses, one_device()[0], atol=1e-5)


@pytest.mark.slow
def test_position_tables_are_never_moved_and_have_no_optimiser_state():
    before = initial_state(make_task(), make_tx(), seed=3)
    after = one_device()[1]
    for part in ('encoder', 'decoder'):
        np.testing.assert_array_equal(
            after.params[part]['pos_embed'], before.params[part]['pos_embed']
        )
        assert 'pos_embed' not in optax.tree_utils.tree_get(after.opt_state, 'mu')[part]
    assert int(after.step) == STEPS


def test_noise_differs_between_steps_and_between_seeds():
    task = make_task()
    images = {'image': np.zeros((4, 16, 16, 3), np.uint8)}
    draws = [
        np.asarray(task.prepare(images, key_for(seed, 'train', step))['noise'])
        for seed, step in [(0, 0), (0, 1), (1, 0)]
    ]
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0][0], draws[0][1])


class Regression:
    """A task that compiles at once: a trained linear map after a frozen one."""

    def init(self, key):
        frozen, head = (jax.random.normal(k, (64, 64)) for k in jax.random.split(key))
        return {'encoder': {'kernel': frozen}, 'head': {'kernel': head, 'bias': jnp.ones(64)}}, {}

    def is_trained(self, path):
        return path.startswith('head')

    def prepare(self, batch, key):
        return batch

    def loss(self, params, model_state, batch, key):
        head = params['head']
        out = batch['x'] @ params['encoder']['kernel'] @ head['kernel'] + head['bias']
        return jnp.mean(jnp.square(out)), {}, model_state


def rows_at(step: int) -> dict[str, np.ndarray]:
    return {'x': np.random.default_rng(step).normal(size=(BATCH, 64)).astype(np.float32)}


def make_regression_tx(name: str = 'adamw', **fields):
    options = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05) | fields
    return make_optimizer(name, lambda _: 0.1, **options)


def regress(
    fsdp: int = 1, ema_decay: float | None = None, start=None, name: str = 'adamw', data: int = 1
):
    """Every state of four steps, the first included, as copies: a step takes its state over."""
    task = Regression()
    tx = make_regression_tx(name)
    mesh = mesh_lib.make_mesh(fsdp, jax.devices()[: fsdp * data])
    state = create_state(task, tx, mesh, seed=3, ema_decay=ema_decay)
    if start is not None:
        state = replace_params(state, start)
    step = jit_step(make_step(task, tx, seed=3, ema_decay=ema_decay), mesh, state)
    states = [jax.tree.map(jnp.copy, state)]
    for number in range(4):
        state, _ = step(state, mesh_lib.put_batch(mesh, rows_at(number)))
        states.append(jax.tree.map(jnp.copy, state))
    return states


def follow_average(states, decay: float) -> None:
    """Compares the average after every step with NumPy's, float64, from the parameters alone."""
    expected = {k: np.float64(v) for k, v in states[0].params['head'].items()}
    for number, state in enumerate(states):
        new = {k: np.float64(v) for k, v in state.params['head'].items()}
        if number:
            expected = {k: decay * expected[k] + (1 - decay) * new[k] for k in new}
        assert state.ema.keys() == {'head'}  # the frozen map is not averaged
        for name, value in expected.items():
            assert state.ema['head'][name].dtype == jnp.float32
            np.testing.assert_allclose(state.ema['head'][name], value, atol=1e-6)
    assert np.abs(np.asarray(state.ema['head']['kernel'] - new['kernel'])).max() > 0.01


def test_norms_in_the_metrics_are_those_of_the_trained_parameters():
    task, tx = Regression(), make_tx()
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    state = create_state(task, tx, mesh, seed=3)
    leaves = [np.asarray(p, np.float64) for p in state.params['head'].values()]
    _, metrics = jit_step(make_step(task, tx, seed=3), mesh, state)(state, rows_at(0))
    expected = np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
    assert float(metrics['param_norm']) == pytest.approx(expected, rel=1e-5)
    assert float(metrics['update_norm']) == 0  # the first step of a warm-up
    assert float(metrics['grad_norm']) > 0


def test_state_is_initialised_straight_into_shards():
    mesh = mesh_lib.make_mesh(8)
    target = abstract_state(Regression(), make_tx(), mesh)
    state = create_state(Regression(), make_tx(), mesh, seed=0)
    for expected, array in zip(jax.tree.leaves(target), jax.tree.leaves(state), strict=True):
        assert array.sharding == expected.sharding
        assert array.shape == expected.shape
    kernel = state.params['head']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


@pytest.mark.parametrize('decay', [0.7, 0.9999])
def test_average_is_that_of_the_trained_parameters(decay):
    follow_average(regress(ema_decay=decay), decay)


@pytest.mark.parametrize('fsdp', [1, 2, 8])
def test_average_is_split_over_all_devices_and_gathered_to_evaluate(fsdp):
    states = regress(fsdp=fsdp, data=8 // fsdp, ema_decay=0.7)
    follow_average(states, 0.7)
    for state in (states[0], states[-1]):
        kernel, average = (tree['head']['kernel'] for tree in (state.params, state.ema))
        assert average.addressable_shards[0].data.size == average.size // 8
        seen = evaluation_params(state)['head']['kernel']
        assert seen.sharding == kernel.sharding
        np.testing.assert_array_equal(seen, average)


def test_averaging_changes_nothing_but_the_average():
    for averaged, plain in zip(regress(ema_decay=0.7), regress(), strict=True):
        for field in ('step', 'params', 'opt_state', 'model_state'):
            ours, without = (getattr(s, field) for s in (averaged, plain))
            assert jax.tree.structure(ours) == jax.tree.structure(without)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, without)


def test_without_an_average_there_is_no_place_for_one_in_the_state():
    """Checkpoints are stored and restored by these names: even a None would be one."""
    state = jax.eval_shape(lambda: initial_state(make_task(), make_tx(), seed=3))
    paths, _ = jax.tree.flatten_with_path(state, is_leaf=lambda x: x is None)
    assert {str(path[0]) for path, _ in paths} == {'.step', '.params', '.opt_state'}
    assert state.ema is None


def test_evaluation_sees_averages_where_they_are_kept_and_frozen_parameters_beside_them():
    state = regress(ema_decay=0.7)[-1]
    seen = evaluation_params(state)
    assert jax.tree.structure(seen) == jax.tree.structure(state.params)
    jax.tree.map(np.testing.assert_array_equal, seen['head'], state.ema['head'])
    assert seen['encoder'] == state.params['encoder']
    plain = state.replace(ema=None)
    assert evaluation_params(plain) is plain.params


def test_an_average_starts_again_from_the_parameters_a_run_starts_from():
    others = regress(fsdp=8)[0].params
    others = jax.tree.map(lambda p: p + 1, others)
    states = regress(fsdp=8, ema_decay=0.7, start=jax.tree.map(jnp.copy, others))
    jax.tree.map(np.testing.assert_array_equal, states[0].params, others)
    follow_average(states, 0.7)
    assert regress(start=regress()[1].params)[0].ema is None


def test_state_and_step_must_agree_on_averaging():
    task, tx = make_task(), make_tx()
    for of_state, of_step in [(None, 0.9), (0.9, None)]:
        state = abstract_state(task, tx, mesh_lib.make_mesh(), ema_decay=of_state)
        with pytest.raises(ValueError, match='averaged'):
            make_step(task, tx, seed=3, ema_decay=of_step)(state, batch_at(0))


@pytest.mark.parametrize('name, buffers', [('adamw', 2), ('lars', 1)])
def test_frozen_parameters_cost_no_optimiser_memory_and_never_move(name, buffers):
    states = regress(name=name)
    memory = sum(x.size for x in jax.tree.leaves(states[0].opt_state) if x.ndim)
    assert memory == buffers * (64 * 64 + 64)
    first, last = (state.params for state in (states[0], states[-1]))
    np.testing.assert_array_equal(last['encoder']['kernel'], first['encoder']['kernel'])
    assert (last['head']['kernel'] != first['head']['kernel']).any()
