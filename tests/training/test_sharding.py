"""Meshes over eight virtual devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mae_jax.data.loader.layout import Memory
from mae_jax.errors import UserError
from mae_jax.training import sharding as mesh_lib


def test_fsdp_must_divide_the_devices():
    with pytest.raises(UserError, match=r'mesh\.fsdp=3 .* 8 devices'):
        mesh_lib.make_mesh(3)


@pytest.mark.parametrize(('batch', 'accumulate'), [(12, 1), (8, 2), (0, 1), (8, 0)])
def test_batch_that_cannot_be_split_is_refused_with_a_size_that_can(batch, accumulate):
    with pytest.raises(
        UserError, match=f'batch_size={batch} .* multiple of {8 * max(accumulate, 1)}'
    ):
        mesh_lib.check_batch(batch, mesh_lib.make_mesh(), accumulate)


def test_the_rows_of_an_image_must_fit_on_a_device():
    mesh_lib.check_batch(32, mesh_lib.make_mesh(), repeats=4)
    with pytest.raises(UserError, match=r'dataset\.repeats=4 .* multiple of 32'):
        mesh_lib.check_batch(16, mesh_lib.make_mesh(), repeats=4)


def test_large_arrays_are_split_on_their_largest_divisible_axis_and_small_ones_are_not():
    mesh = mesh_lib.make_mesh(4)
    shapes = {
        'kernel': (64, 256),
        'tall': (256, 64),
        'odd': (63, 256 * 3 + 1),
        'partly': (1023, 8),
        'bias': (256,),
        'scalar': (),
    }
    state = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    layout = {name: s.spec for name, s in mesh_lib.state_shardings(mesh, state).items()}
    assert layout == {
        'kernel': PartitionSpec(None, 'fsdp'),
        'tall': PartitionSpec('fsdp'),
        'odd': PartitionSpec(),
        'partly': PartitionSpec(None, 'fsdp'),
        'bias': PartitionSpec(),
        'scalar': PartitionSpec(),
    }


@pytest.mark.parametrize('fsdp', [1, 4, 8])
def test_a_global_batch_keeps_the_order_of_its_rows(fsdp):
    mesh = mesh_lib.make_mesh(fsdp)
    rows = mesh_lib.local_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    batch = mesh_lib.put_batch(mesh, {'label': rows * 10})
    np.testing.assert_array_equal(batch['label'], np.arange(16) * 10)
    assert batch['label'].addressable_shards[0].data.shape == (2,)


def test_pieces_of_a_batch_are_the_rows_of_each_device_in_order():
    devices = jax.devices()
    mesh = mesh_lib.make_mesh(2, devices=[devices[i] for i in (3, 0, 7, 2, 5, 1, 6, 4)])
    rows, puts = np.arange(16), mesh_lib.Devices(mesh)
    expected = mesh_lib.batch_sharding(mesh).devices_indices_map((16,))
    pieces = [puts.put(i, {'label': part}, False) for i, part in enumerate(np.split(rows, 8))]
    for piece in pieces:
        (device,) = piece['label'].devices()
        np.testing.assert_array_equal(piece['label'], rows[expected[device]])
    np.testing.assert_array_equal(puts.join(pieces)['label'], rows)


@pytest.mark.parametrize('shape', [(8,), (8, 64, 64, 3)])
def test_memory_that_is_lent_may_be_used_again_at_once(shape):
    rows = {'image': Memory().copy(np.ones(shape, np.uint8))}
    array = mesh_lib.Devices(mesh_lib.make_mesh()).put(0, rows, True)['image']
    rows['image'][:] = 2
    np.testing.assert_array_equal(array, np.ones(shape))


def test_every_piece_is_checked_before_it_is_put():
    seen = []
    puts = mesh_lib.Devices(mesh_lib.make_mesh(), lambda rows: seen.append(rows['label'].tolist()))
    puts.put(3, {'label': np.array([4, 5])}, False)
    assert seen == [[4, 5]]


def test_arrays_of_a_batch_may_have_a_row_for_several_examples():
    mesh = mesh_lib.make_mesh()
    batch = mesh_lib.put_batch(mesh, {'canvas': np.arange(8), 'box': np.arange(32)})
    shapes = {name: rows.addressable_shards[0].data.shape for name, rows in batch.items()}
    assert shapes == {'canvas': (1,), 'box': (4,)}
