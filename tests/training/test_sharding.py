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


SHAPES = {
    'kernel': (64, 256),
    'odd': (63, 256 * 3 + 1),
    'partly': (1023, 8),
    'six rows': (6, 1024),
    'positions': (1, 64, 256),
    'bias': (256,),
    'scalar': (),
}


def layouts(layout, mesh):
    arrays = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}
    return {name: sharding.spec for name, sharding in layout(mesh, arrays).items()}


def test_large_parameters_are_split_on_the_axis_that_fills_tiles_and_small_ones_are_not():
    layout = layouts(mesh_lib.parameter_shardings, mesh_lib.make_mesh(4))
    assert layout == {
        'kernel': PartitionSpec('fsdp', None),
        'odd': PartitionSpec(None, None),
        'partly': PartitionSpec(None, 'fsdp'),
        'six rows': PartitionSpec(None, 'fsdp'),
        'positions': PartitionSpec(None, None, None),  # added to activations
        'bias': PartitionSpec(None),
        'scalar': PartitionSpec(),
    }


def test_what_only_the_update_needs_is_split_over_data_too_on_the_same_axis_where_it_divides():
    layout = layouts(mesh_lib.update_shardings, mesh_lib.make_mesh(4))
    assert layout == {
        'kernel': PartitionSpec(('fsdp', 'data'), None),
        'odd': PartitionSpec(None, None),
        'partly': PartitionSpec(None, ('fsdp', 'data')),
        'six rows': PartitionSpec(None, ('fsdp', 'data')),
        'positions': PartitionSpec(None, 'data', None),
        'bias': PartitionSpec(None),
        'scalar': PartitionSpec(),
    }
    layout = layouts(mesh_lib.update_shardings, mesh_lib.make_mesh(1))
    assert layout['kernel'] == PartitionSpec('data', None)
    one = mesh_lib.make_mesh(devices=jax.devices()[:1])
    for spec in layouts(mesh_lib.update_shardings, one).values():
        assert set(spec) <= {None}


@pytest.mark.parametrize(
    ('shape', 'spec'),
    [
        (
            (1024, 3072),
            (('data',), None),
        ),  # a part of 4 x 3072 fills half a tile, 1024 x 12 a tenth
        ((3072, 1024), (('data',), None)),
        ((1000, 1024), (None, ('data',))),
        ((768, 768), (('data',), None)),
        ((1024, 1000), (('data',), None)),
        ((1000, 1000), (None, None)),
    ],
)
def test_parts_for_a_pod_are_thin_but_few_tiles(shape, spec):
    mesh = mesh_lib.planned_mesh(256)
    layout = mesh_lib.update_shardings(mesh, jax.ShapeDtypeStruct(shape, np.float32))
    assert layout.spec == PartitionSpec(*spec)


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
