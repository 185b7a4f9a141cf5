"""Checkpoints are saved and restored to the bit, and the right ones are kept."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import assert_same, flip_bit, make_state
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from mae_jax.checkpoints.find import steps
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.errors import UserError


def test_a_round_trip_keeps_every_bit_and_the_meta(tmp_path):
    meta = {'seed': 3, 'batch_size': 8, 'dataset': {'name': 'digits', 'examples': 1797}}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make_state()) is None
        assert checkpoints.read_meta() is None
        checkpoints.save(7, make_state(3), meta)
        state, step, restored_meta = checkpoints.restore(make_state())
        assert checkpoints.read_meta(7) == restored_meta == meta
    assert step == 7
    assert_same(state, make_state(3))


def test_a_state_saved_from_eight_devices_restores_on_eight_two_and_one(tmp_path):
    def layout(fsdp):
        shape, devices = (1, fsdp), jax.devices()[:fsdp]
        mesh = jax.make_mesh(
            shape, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=devices
        )
        sharded = NamedSharding(mesh, PartitionSpec('fsdp'))
        whole = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda x: sharded if x.ndim == 2 else whole, make_state())

    expected = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(expected, layout(8)), {})
        checkpoints.wait()
        single = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), expected)
        for shardings in (layout(8), layout(2), single):
            target = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                expected,
                shardings,
            )
            state, _, _ = checkpoints.restore(target)
            assert_same(state, expected)
            assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_a_step_that_overwrites_its_donated_state_does_not_reach_the_checkpoint(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {'params': jnp.zeros(2_000_000)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {})
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        restored, _, _ = checkpoints.restore(state)
    assert not np.asarray(restored['params']).any()


def test_steps_donate_split_and_replicated_arrays_while_they_are_written(tmp_path):
    mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    layouts = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('fsdp',))]
    step = jax.jit(lambda s: [x + 1 for x in s], donate_argnums=0, out_shardings=layouts)
    values = np.random.default_rng(0).random((512, 1024), np.float32)
    state = [jax.device_put(values, layout) for layout in layouts]
    with Checkpoints(tmp_path, keep_last=9) as checkpoints:
        for number in range(4):
            checkpoints.save(number, state, {})  # the one before may still be written
            donated, state = state, step(state)
            assert all(array.is_deleted() for array in donated)
        checkpoints.wait()
        expected = values
        for number in range(4):
            for array in checkpoints.restore(state, number)[0]:
                np.testing.assert_array_equal(array, expected)
            expected = expected + np.float32(1)


def test_weights_are_read_without_knowing_the_model_and_nothing_is_touched(copied):
    incomplete = copied / '3.orbax-checkpoint-tmp'
    incomplete.mkdir()
    params, _, step, meta = restore_weights(copied)
    assert (step, meta) == (2, {'seed': 2})
    assert_same(params, jax.tree.map(np.asarray, make_state(2)['params']))
    assert isinstance(params['encoder']['kernel'], np.ndarray)
    assert incomplete.exists()


def test_reading_weights_where_there_are_none_is_an_error(tmp_path):
    with pytest.raises(UserError, match='no checkpoint'):
        restore_weights(tmp_path / 'nothing')


def test_a_state_of_another_shape_is_refused(copied):
    with Checkpoints(copied) as checkpoints, pytest.raises(UserError, match='does not fit'):
        checkpoints.restore(make_state(rows=32))


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.save(1, make_state(2), {})
        assert_same(checkpoints.restore(make_state())[0], make_state(1))


@pytest.mark.parametrize(
    'keep_last, every, kept',
    [(1, None, [7]), (2, None, [6, 7]), (2, 3, [0, 3, 6, 7])],
)
def test_the_last_ones_and_every_multiple_are_kept(tmp_path, keep_last, every, kept):
    with Checkpoints(tmp_path, keep_last=keep_last, keep_every_steps=every) as checkpoints:
        for step in range(8):
            checkpoints.save(step, {'x': jnp.ones(3)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == kept
    assert steps(tmp_path) == kept


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match='keep_last=0'):
        Checkpoints(tmp_path, keep_last=0)


def test_a_warning_is_logged_without_a_log_function(copied, caplog):
    flip_bit(copied / '2' / 'meta' / 'metadata')
    with caplog.at_level(logging.WARNING), Checkpoints(copied) as checkpoints:
        checkpoints.restore(make_state())
    assert 'step 2' in caplog.text
