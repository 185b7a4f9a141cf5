"""The scaling benchmark fits exponents of power laws, and every point trains."""

import jax
import numpy as np
import pytest
import scaling
from train_step import PRETRAIN, make_task, make_tx

from mae_jax.training import sharding as mesh_lib
from mae_jax.training.state import abstract_state

MODEL = dict(patch_size=4, width=32, heads=2)
DECODER = dict(decoder_width=16, decoder_depth=1, decoder_heads=2)
SWEEP = dict(mask_ratios=(0.0, 0.5), image_sizes=(16, 24), depths=(1, 2))


@pytest.fixture(scope='module')
def points():
    fields = MODEL | DECODER | {'depth': 2}
    return scaling.sweep('vit_tiny', 'float32', image_size=16, **SWEEP, **fields)


def test_exponent_of_a_power_law_is_recovered():
    amounts = np.array([1.0, 2.0, 5.0, 11.0])
    assert scaling.exponent(amounts, 3 * amounts**1.7) == pytest.approx(1.7)


def test_one_factor_changes_at_a_time(points):
    settings = [(p.factor, p.amount, p.task.model.depth, p.task.image_size[0]) for p in points]
    assert settings == [
        ('mask ratio', 1.0, 2, 16),
        ('mask ratio', 0.5, 2, 16),
        ('image size', 16, 2, 16),
        ('image size', 24, 2, 24),
        ('depth', 1, 1, 16),
        ('depth', 2, 2, 16),
    ]
    ratios = [p.task.model.masking.ratio for p in points]
    assert ratios == [0.0, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert points[2].task == points[5].task  # measured once


def test_table_has_rates_and_exponents_of_the_times(points):
    # Time that grows with the square of each factor.
    seconds = [np.full(3, p.amount**2.0) for p in points]
    head, rows = scaling.table(points, seconds, images=4)
    printed = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row['exponent of time'] for row in printed] == ['2.00'] * 6
    assert printed[0]['images/s per device'] == '4' and printed[1]['images/s per device'] == '16'
    flops = [p.task.flops_per_image() for p in points]
    expected = np.log(flops[3] / flops[2]) / np.log(24 / 16)
    assert float(printed[3]['of FLOPs']) == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_steps_of_different_shapes_train_on_shared_arrays(points):
    arrays = scaling.Arrays()
    runs = [scaling.runner(points[i].task, arrays, 8, steps=2) for i in (1, 3)]
    losses = [run() for _ in range(10) for run in runs]
    assert np.all(np.isfinite(losses)) and np.mean(losses[-4:]) < np.mean(losses[:4])
    task = make_task('vit_tiny', 16, 'float32', depth=2, **MODEL, **DECODER)
    like = abstract_state(task, make_tx(task, PRETRAIN), mesh_lib.make_mesh())
    state = arrays.state(like)
    assert int(state.step) == 40  # counts the steps of both
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.shape == b.shape, state, like)))
