"""Which device stands where in the mesh: stand-ins for GPUs and CPUs of several hosts."""

import dataclasses
import math

import numpy as np
import pytest

from mae_jax.training.sharding import make_mesh
from mae_jax.training.topology import arrange, by_slice, spans_slices


@dataclasses.dataclass(frozen=True)
class Device:
    """What JAX knows of a GPU: its host is a slice."""

    id: int
    slice_index: int
    platform: str = 'gpu'
    device_kind: str = 'NVIDIA H100 80GB HBM3'

    @property
    def process_index(self) -> int:
        return self.slice_index


def hosts(*sizes: int, **fields) -> list[Device]:
    """Hosts with so many GPUs each; JAX lists devices by process, whatever that is."""
    host_of = [host for host, count in enumerate(sizes) for _ in range(count)]
    devices = [Device(number, host, **fields) for number, host in enumerate(host_of)]
    return list(np.random.default_rng(0).permutation(np.array(devices, dtype=object)))


def slices_of(row) -> int:
    return len({device.slice_index for device in row})


def divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


@pytest.mark.parametrize(('slices', 'size'), [(1, 8), (2, 8), (4, 8), (3, 8), (2, 6), (16, 1)])
def test_every_divisor_is_a_mesh_whose_rows_lie_in_as_few_slices_as_can_be(slices, size):
    devices = hosts(*[size] * slices)
    for fsdp in divisors(slices * size):
        grid = arrange(devices, fsdp)
        assert grid.shape == (slices * size // fsdp, fsdp)
        assert sorted(d.id for d in grid.flat) == list(range(slices * size))
        fewest = fsdp // math.gcd(fsdp, size)
        assert {slices_of(row) for row in grid} == {fewest}
        assert spans_slices(make_mesh(fsdp, devices)) == (fewest > 1)


def test_data_goes_over_the_slow_network_once_for_each_slice():
    """Devices that hold the same shard are together within a slice before they leave it."""
    grid = arrange(hosts(8, 8), 4)
    assert [[d.id for d in row] for row in grid] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('sizes', 'fsdp', 'spanning'),
    [
        ((8, 8, 4), 4, 0),
        ((8, 8, 4), 5, 2),
        ((8, 8, 4), 20, 1),
        ((8, 4), 4, 0),  # one slice is twice the other
        ((3, 4, 1), 4, 1),  # the whole one first, then what is left of the others
        ((7, 8, 1), 1, 0),
    ],
)
def test_slices_of_different_sizes(sizes, fsdp, spanning):
    devices = hosts(*sizes)
    grid = arrange(devices, fsdp)
    assert sorted(d.id for d in grid.flat) == list(range(sum(sizes)))
    assert sum(slices_of(row) > 1 for row in grid) == spanning
    assert spans_slices(make_mesh(fsdp, devices)) == (spanning > 0)


def test_devices_that_are_no_box_of_a_torus_get_a_plain_order():
    """Cores of a v4 chip, which JAX's helpers refuse, and chips with a hole between them."""

    @dataclasses.dataclass(frozen=True)
    class Chip(Device):
        coords: tuple[int, ...] = ()
        core_on_chip: int = 0

    fields = dict(slice_index=0, platform='tpu', device_kind='TPU v4')
    cores = [Chip(i, coords=(i // 2, 0, 0), core_on_chip=i % 2, **fields) for i in range(8)]
    holes = [Chip(i, coords=(i, i, 0), **fields) for i in range(8)]
    for devices in (cores, holes):
        for fsdp in (1, 2, 4, 8):
            ids = [d.id for d in arrange(devices[::-1], fsdp).flat]
            assert ids == list(range(8))


def test_devices_without_a_slice_are_one():
    @dataclasses.dataclass(frozen=True)
    class Cpu:
        id: int
        platform = device_kind = 'cpu'

    devices = [Cpu(i) for i in range(8)]
    assert by_slice(devices) == [devices]
    np.testing.assert_array_equal(arrange(devices, 2).ravel(), devices)
