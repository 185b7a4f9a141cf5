"""What lies where when one copy of a model is spread over eight devices, by XLA's own account."""

import re

import jax
import numpy as np
import pytest
from helpers.models import make_mae
from helpers.optimization import make_tx

from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.state import abstract_state, initial_state, jit_step, make_step

DEPTH, WIDTH = 8, 64


def make_task(**fields):
    model = make_mae(
        patch_size=4, width=WIDTH, depth=DEPTH, heads=4,
        decoder_width=32, decoder_depth=1, decoder_heads=4, **fields,
    )  # fmt: skip
    return Pretrain(model, (16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def size(tree):
    return sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_a_model_starts_in_its_shards_and_no_device_ever_holds_it_whole():
    task, tx, mesh = make_task(), make_tx(), mesh_lib.make_mesh(8)
    state = abstract_state(task, tx, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    start = jax.jit(lambda: initial_state(task, tx, 0), out_shardings=shardings)
    held = start.lower().compile().memory_analysis()
    whole = size(state)
    small = sum(size(x) for x in jax.tree.leaves(state) if x.size < mesh_lib.MIN_SHARDED_SIZE)
    assert held.output_size_in_bytes <= (whole - small) / 8 + small + 4096
    assert held.output_size_in_bytes + held.temp_size_in_bytes < whole / 3
    batch = {'image': jax.ShapeDtypeStruct((16, 16, 16, 3), np.uint8)}
    step = jit_step(make_step(task, tx, seed=0), mesh, state).lower(state, batch).compile()
    held = step.memory_analysis()
    assert held.argument_size_in_bytes <= (whole - small) / 8 + small + 20_000  # and the batch
    assert held.alias_size_in_bytes >= 0.99 * held.output_size_in_bytes - 1000  # given, not copied


@pytest.mark.slow
def test_the_axis_of_scanned_layers_is_never_split():
    task, tx, mesh = make_task(scan=True), make_tx(), mesh_lib.make_mesh(8)
    state = abstract_state(task, tx, mesh)
    batch = {'image': jax.ShapeDtypeStruct((16, 16, 16, 3), np.uint8)}
    step = jit_step(make_step(task, tx, seed=0), mesh, state).lower(state, batch).compile()
    loops = [line for line in step.as_text().splitlines() if re.search(r'= \(.* while\(', line)]
    carried = {
        tuple(int(n) for n in dims.split(','))
        for line in loops
        for dims in re.findall(r'f32\[([\d,]+)\]', line)
    }
    kernels = {  # stacked, as it would be were the layers spread: one for each device
        (DEPTH // 8, WIDTH, 3 * WIDTH),
        (DEPTH // 8, WIDTH, WIDTH),
        (DEPTH // 8, WIDTH, 4 * WIDTH),
        (DEPTH // 8, 4 * WIDTH, WIDTH),
    }
    assert any(shape[0] == DEPTH and len(shape) == 3 for shape in carried), carried
    assert not carried & kernels
