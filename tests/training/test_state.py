"""The jitted step: one device or eight, whole batches or accumulated ones, give one run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from mae_jax.keys import key_for
from mae_jax.models.mae import MAE
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.optimizer import make_optimizer, make_schedule, split_params
from mae_jax.training.state import abstract_state, create_state, initial_state, jit_step, make_step

BATCH, STEPS = 16, 20


def make_task(**fields) -> Pretrain:
    model = MAE(
        patch_size=4, width=64, depth=1, heads=4,
        decoder_width=32, decoder_depth=1, decoder_heads=4, **fields,
    )  # fmt: skip
    return Pretrain(model, (16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def make_tx() -> optax.GradientTransformation:
    schedule = make_schedule(peak=1e-3, total_steps=STEPS, warmup_steps=5)
    return make_optimizer('adamw', schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)


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
        state, metrics = step(state, mesh_lib.put_batch(mesh, batch_at(number), BATCH))
        losses.append(float(metrics['loss']))
    return np.array(losses), state


@functools.cache
def one_device():
    return run(devices=1)


@pytest.mark.parametrize('fsdp', [1, 4, 8])
def test_eight_devices_have_the_losses_of_one(fsdp):
    losses, state = run(devices=8, fsdp=fsdp)
    np.testing.assert_allclose(losses, one_device()[0], atol=1e-5)
    kernel = state.params['encoder']['blocks']['block_0']['mlp']['fc1']['kernel']
    moment = optax.tree_utils.tree_get(state.opt_state, 'mu')
    moment = moment['encoder']['blocks']['block_0']['mlp']['fc1']['kernel']
    for array in (kernel, moment):  # parameters and optimiser state lie in shards
        assert array.addressable_shards[0].data.size == array.size // fsdp


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


@pytest.mark.parametrize('accumulate', [2, 8])
def test_accumulated_micro_batches_equal_the_whole_batch(accumulate):
    losses, state = run(devices=1, accumulate=accumulate)
    np.testing.assert_allclose(losses, one_device()[0], atol=1e-5)
    ours, whole = (traverse_util.flatten_dict(s.params) for s in (state, one_device()[1]))
    for path in ours:
        if path[-2:] != ('qkv', 'bias'):  # the key's gradient is rounding, which Adam scales up
            np.testing.assert_allclose(ours[path], whole[path], atol=1e-4, err_msg=str(path))


def test_accumulation_over_several_devices_equals_the_whole_batch():
    losses, _ = run(devices=4, fsdp=2, accumulate=2)
    np.testing.assert_allclose(losses, one_device()[0], atol=1e-5)


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


def test_norms_in_the_metrics_are_those_of_the_trained_parameters():
    task, tx = make_task(), make_tx()
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    state = create_state(task, tx, mesh, seed=3)
    flat = jax.tree.leaves(split_params(state.params, task.is_trained)[0])
    expected = np.sqrt(sum(np.square(np.asarray(p, np.float64)).sum() for p in flat))
    _, metrics = jit_step(make_step(task, tx, seed=3), mesh, state)(state, batch_at(0))
    assert float(metrics['param_norm']) == pytest.approx(expected, rel=1e-5)
    assert float(metrics['update_norm']) == 0  # the first step of a warm-up
    assert float(metrics['grad_norm']) > 0


def test_state_is_initialised_straight_into_shards():
    mesh = mesh_lib.make_mesh(8)
    target = abstract_state(make_task(), make_tx(), mesh)
    state = create_state(make_task(), make_tx(), mesh, seed=0)
    for wanted, array in zip(jax.tree.leaves(target), jax.tree.leaves(state), strict=True):
        assert array.sharding == wanted.sharding
        assert array.shape == wanted.shape
