"""A loss or gradient that is not finite ends the run, or is left out where that is asked for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.optimization import make_tx

from mae_jax.errors import Diverged
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.loop import Intervals, Recorder, Saver, train
from mae_jax.training.state import TrainState, create_state, jit_step, make_step
from mae_jax.training.throughput import Throughput


class Regression:
    """The smallest task there is: one matrix."""

    def init(self, key):
        return {'layer': {'kernel': jax.random.normal(key, (4, 3))}}, {'seen': np.float32(0)}

    def is_trained(self, path):
        return True

    def prepare(self, batch, key):
        return batch

    def loss(self, params, model_state, batch, key):
        error = jnp.mean((batch['image'] @ params['layer']['kernel'] - 1) ** 2)
        return error, {}, {'seen': model_state['seen'] + batch['image'].sum()}


def trained_on(batches, skip_nonfinite, ema_decay=None):
    """The states after each batch, as numpy, and their metrics."""
    task, tx, mesh = Regression(), make_tx(), mesh_lib.make_mesh(devices=jax.devices()[:1])
    state = create_state(task, tx, mesh, seed=3, ema_decay=ema_decay)
    options = dict(skip_nonfinite=skip_nonfinite, ema_decay=ema_decay)
    step = jit_step(make_step(task, tx, seed=3, **options), mesh, state)
    states, metrics = [jax.tree.map(np.asarray, state)], []
    for images in batches:
        state, actual = step(state, mesh_lib.put_batch(mesh, {'image': images}))
        states.append(jax.tree.map(np.asarray, state))
        metrics.append({name: float(value) for name, value in actual.items()})
    return states, metrics


def test_a_step_that_is_not_finite_moves_the_schedule_and_nothing_else():
    rng = np.random.default_rng(0)
    good = [rng.random((8, 4), np.float32) for _ in range(3)]
    broken = good[1].copy()
    broken[5, 3] = np.nan
    batches = [good[0], good[1], broken, good[2]]
    states, metrics = trained_on(batches, skip_nonfinite=True, ema_decay=0.5)
    assert math.isnan(metrics[2]['loss'])
    before, after = states[2], states[3]
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.ema, after.ema)
    assert before.model_state['seen'] == after.model_state['seen'] != 0
    adam = [s for s in after.opt_state if isinstance(s, optax.ScaleByAdamState)][0]
    assert adam.count == 2 and int(after.step) == 3
    jax.tree.map(np.testing.assert_array_equal, before.opt_state[0], adam)
    (place,) = [
        s.count
        for s in jax.tree.leaves(
            after.opt_state, is_leaf=lambda s: isinstance(s, optax.ScaleByScheduleState)
        )
        if isinstance(s, optax.ScaleByScheduleState)
    ]
    assert place == 3
    assert math.isfinite(metrics[3]['loss'])
    moved = optax.tree.norm(jax.tree.map(np.subtract, states[4].params, after.params))
    assert 0 < float(moved) < math.inf


def test_a_run_without_such_steps_is_the_same_with_the_policy():
    rng = np.random.default_rng(0)
    good = [rng.random((8, 4), np.float32) for _ in range(3)]
    with_policy, without = (trained_on(good, policy)[0][-1] for policy in (True, False))
    jax.tree.map(np.testing.assert_array_equal, with_policy, without)


class Batches:
    def __iter__(self):
        return self

    def __next__(self):
        return {}

    def ready(self):
        return True


def loop(values, skip_nonfinite, logged, every=1):
    """Runs a loop whose steps have these losses."""

    def step(state, batch):
        loss = values[int(state.step)]
        return state.replace(step=state.step + 1), {'loss': np.float32(loss), 'grad_norm': 1.0}

    throughput = Throughput(
        batch_size=1, flops_per_image=1.0, devices=jax.devices()[:1], total_steps=len(values)
    )
    return train(
        start(),
        step,
        Batches(),
        Intervals(len(values), log=every, checkpoint=2),
        recorder=Recorder(throughput, lambda step, scalars: logged.append((step, scalars))),
        saver=Saver(lambda step, state, metrics: logged.append(('saved', step))),
        skip_nonfinite=skip_nonfinite,
    )


def start():
    return TrainState(step=np.int32(0), params={}, model_state={}, opt_state=())


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ('values', 'patience', 'stopped_at'),
    [
        ([1, 1, NAN, 1], 0, 3),
        ([1, NAN, 1, 1], 1, 2),
        ([1, NAN, 1, INF, NAN, 1], 2, 5),
        ([1, NAN, 1, INF, 1, NAN, 1], 2, None),
        ([NAN, NAN, 1, NAN, NAN, 1, NAN, NAN, NAN], 3, 9),
    ],
)
def test_the_run_stops_at_so_many_in_a_row(values, patience, stopped_at):
    logged = []
    if stopped_at is None:
        assert loop(values, patience, logged).step == len(values)
        return
    with pytest.raises(Diverged, match=f'loss was (nan|inf) at step {stopped_at}'):
        loop(values, patience, logged)
    saved = [step for what, step in logged if what == 'saved']
    assert saved == list(range(2, stopped_at, 2))  # nothing of the step that ended it


def test_means_leave_out_what_was_skipped_and_its_number_is_logged():
    logged = []
    loop([1, NAN, 3, NAN, NAN, 5, 7, 7, 7], 3, logged, every=3)
    windows = [scalars for what, scalars in logged if what != 'saved']
    assert [w.get('loss') for w in windows] == [2.0, 5.0, 7.0]
    assert [w['skipped_steps'] for w in windows] == [1.0, 2.0, 0.0]


def test_a_window_of_skipped_steps_has_no_loss():
    logged = []
    loop([NAN, NAN, 1, 1], 3, logged, every=2)
    first = [scalars for what, scalars in logged if what != 'saved'][0]
    assert 'loss' not in first and first['skipped_steps'] == 2.0
