"""Meshes and steps for TPUs that are not here: libtpu compiles for them on any machine."""

import functools

import jax
import numpy as np
import pytest
from helpers.models import make_mae
from helpers.optimization import make_tx
from jax.experimental import topologies
from jax.sharding import Mesh

from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training.sharding import make_mesh
from mae_jax.training.state import abstract_state, jit_step, make_step
from mae_jax.training.topology import by_slice, spans_slices

TOPOLOGIES = {  # name -> number of devices, further arguments of JAX
    'v4:2x2x4': (16, {'chip_config_name': 'megacore'}),  # one device a chip
    'v5e:2x2': (4, {}),
    'v5e:16x16': (256, {}),
    'v5p:4x4x4': (64, {}),
    'v6e:4x4': (16, {}),
    'v6e:16x16': (256, {}),
    '4 slices of v5e:4x4': (64, {'num_slices': 4}),
}
MESHES = [(name, 2**n) for name, (size, _) in TOPOLOGIES.items() for n in range(size.bit_length())]
IN_CI = (('v6e:4x4', 2), ('4 slices of v5e:4x4', 32))
"""Steps that `-m slow` compiles: `fsdp` splits an axis of the torus, and spans slices."""


@functools.cache
def devices_of(name: str) -> list[jax.Device]:
    """Devices to compile for; skips the test where libtpu is missing."""
    pytest.importorskip('libtpu', reason="pip install -e '.[aot]' brings it")
    arguments = dict(topology_name=name.split()[-1]) | TOPOLOGIES[name][1]
    return topologies.get_topology_desc(platform='tpu', **arguments).devices


def connected(chips: list[jax.Device], ends: np.ndarray) -> bool:
    """Returns whether links between neighbours join these chips of a torus with such ends."""
    places, seen = {tuple(chip.coords) for chip in chips}, set()
    front = [min(places)]
    while front:
        place = front.pop()
        if place in places - seen:
            seen.add(place)
            steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
            front += [tuple(int(x) for x in there) for there in (place + steps) % ends]
    return seen == places


@pytest.mark.parametrize('name', TOPOLOGIES)
def test_devices_that_share_a_copy_are_neighbours_on_the_torus(name):
    devices = devices_of(name)
    assert len(devices) == TOPOLOGIES[name][0]
    slices = by_slice(devices)
    ends = np.max([device.coords for device in devices], axis=0) + 1
    for fsdp in (2**n for n in range(len(devices).bit_length())):
        mesh = make_mesh(fsdp, devices)
        assert dict(mesh.shape) == {'data': len(devices) // fsdp, 'fsdp': fsdp}
        assert {d.id for d in mesh.devices.flat} == {d.id for d in devices}
        assert spans_slices(mesh) == (fsdp > len(slices[0]))
        for row in mesh.devices:
            assert all(connected(chips, ends) for chips in by_slice(row))


def compile_step(mesh: Mesh) -> jax.stages.Compiled:
    """Compiles a small step on two images a device, with kernels that fsdp splits."""
    model = make_mae(
        patch_size=4, width=256, depth=1, heads=4,
        decoder_width=256, decoder_depth=1, decoder_heads=4,
    )  # fmt: skip
    task, tx = Pretrain(model, (16, 16), mean=(0.5,) * 3, std=(0.25,) * 3), make_tx()
    state = abstract_state(task, tx, mesh)
    batch = {'image': jax.ShapeDtypeStruct((2 * mesh.size, 16, 16, 3), np.uint8)}
    return jit_step(make_step(task, tx, seed=0), mesh, state).lower(state, batch).compile()


@pytest.mark.parametrize(
    ('name', 'fsdp'),
    [
        pytest.param(*case, marks=pytest.mark.slow if case in IN_CI else pytest.mark.exhaustive)
        for case in MESHES
    ],
)
def test_a_step_compiles_for_every_power_of_two(name, fsdp):
    step = compile_step(make_mesh(fsdp, devices_of(name)))
    gathers = step.as_text().count('all-gather')
    assert (gathers > 0) == (fsdp > 1)
