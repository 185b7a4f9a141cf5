"""Meshes and steps for TPUs that are not here: libtpu compiles for them on any machine."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import make_mae
from helpers.optimization import make_tx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training.sharding import AXES, make_mesh
from mae_jax.training.state import abstract_state, jit_step, make_step
from mae_jax.training.topology import by_slice, spans_slices

AUTO = (AxisType.Auto,) * 2
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


@pytest.mark.parametrize('name', [name for name in TOPOLOGIES if 'slices' not in name])
def test_where_jax_makes_a_mesh_by_itself_it_is_ours(name):
    devices, made = devices_of(name), 0
    for fsdp in (2**n for n in range(len(devices).bit_length())):
        try:
            shape = len(devices) // fsdp, fsdp
            theirs = jax.make_mesh(shape, AXES, axis_types=AUTO, devices=devices)
        except NotImplementedError:  # it would have to split an axis of the torus
            continue
        assert make_mesh(fsdp, devices) == theirs
        made += 1
    assert made > 2


class Autoencoder:
    """A task of two matrices, which `fsdp` splits; it compiles in a second or two."""

    def init(self, key):
        inner, outer = jax.random.split(key)
        shape = (256, 1024)
        encoder = {'kernel': jax.random.normal(inner, shape)}
        return {'encoder': encoder, 'decoder': {'kernel': jax.random.normal(outer, shape).T}}, {}

    def is_trained(self, path):
        return True

    def prepare(self, batch, key):
        return batch

    def loss(self, params, model_state, batch, key):
        image = batch['image'] / 255
        features = jax.nn.gelu(image @ params['encoder']['kernel'])
        return jnp.mean((features @ params['decoder']['kernel'] - image) ** 2), {}, {}


def compile_step(mesh: Mesh, task: Any, *shape: int) -> str:
    """Compiles a step on two images a device, and returns the program's text."""
    tx = make_tx()
    state = abstract_state(task, tx, mesh)
    batch = {'image': jax.ShapeDtypeStruct((2 * mesh.size, *shape), np.uint8)}
    return (
        jit_step(make_step(task, tx, seed=0), mesh, state).lower(state, batch).compile().as_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'fsdp'), MESHES)
def test_a_step_compiles_for_every_power_of_two(name, fsdp):
    program = compile_step(make_mesh(fsdp, devices_of(name)), Autoencoder(), 256)
    held = re.search('entry_computation_layout=.*', program)[0]
    arguments, results = held.split('->')
    for text in (arguments, results):
        shapes = re.findall(r'f32\[(\d+),(\d+)\]', text)
        sizes = [int(rows) * int(columns) for rows, columns in shapes]
        assert len(sizes) >= 6 and sizes.count(256 * 1024 // fsdp) >= 2  # kernels, their moments


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'fsdp'), [('v6e:4x4', 2), ('4 slices of v5e:4x4', 32)])
def test_pretraining_compiles_where_an_axis_of_the_torus_is_split_or_slices_are_spanned(name, fsdp):
    model = make_mae(
        patch_size=4, width=256, depth=1, heads=4,
        decoder_width=256, decoder_depth=1, decoder_heads=4,
    )  # fmt: skip
    task = Pretrain(model, (16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    program = compile_step(make_mesh(fsdp, devices_of(name)), task, 16, 16, 3)
    assert 'all-gather' in program
