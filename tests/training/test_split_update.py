"""The update whose work is split over devices is that of NumPy, whichever way it is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.training import sharding as mesh_lib
from mae_jax.training.optimizer import make_optimizer
from mae_jax.training.state import create_state, jit_step, make_step

BATCH, STEPS, LR = 16, 4, 0.1
B1, B2, EPS, DECAY, MOMENTUM, TRUST = 0.9, 0.95, 1e-8, 0.05, 0.9, 0.001
MESHES = [(8, 1, 1), (8, 1, 2), (8, 2, 1), (8, 4, 2), (8, 8, 1), (2, 1, 1), (1, 1, 1)]
"""Devices, `fsdp`, micro-batches."""


class Regression:
    """Two trained layers of which only the kernels are large, and a frozen one."""

    def init(self, key):
        keys = jax.random.split(key, 3)
        kernels = [jax.random.normal(k, (64, 64)) / 8 for k in keys]
        names = 'frozen', 'first', 'second'
        return {
            n: {'kernel': k, 'bias': jnp.ones(64)} for n, k in zip(names, kernels, strict=True)
        }, {}

    def is_trained(self, path):
        return not path.startswith('frozen')

    def prepare(self, batch, key):
        return batch

    def loss(self, params, model_state, batch, key):
        x = batch['x']
        for name in ('frozen', 'first', 'second'):
            x = x @ params[name]['kernel'] + params[name]['bias']
        return jnp.mean(jnp.square(x)), {}, model_state


def rows(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(BATCH, 64)).astype(np.float32)


def trained(name: str, devices: int, fsdp: int, accumulate: int, **fields):
    """Parameters and metrics after each step, on the host."""
    options = dict(b1=B1, b2=B2, eps=EPS, weight_decay=DECAY, momentum=MOMENTUM)
    tx = make_optimizer(name, lambda _: LR, **options, trust_coefficient=TRUST, **fields)
    task, mesh = Regression(), mesh_lib.make_mesh(fsdp, jax.devices()[:devices])
    state = create_state(task, tx, mesh, seed=3)
    kernel = state.params['first']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.size == kernel.size]
    assert all(m.addressable_shards[0].data.size == m.size // devices for m in moments)
    assert len(moments) == {'adamw': 4, 'lars': 2}[name]
    step = jit_step(make_step(task, tx, seed=3, accumulate=accumulate), mesh, state)
    params, metrics = [jax.tree.map(np.asarray, state.params)], []
    for number in range(STEPS):
        state, actual = step(state, mesh_lib.put_batch(mesh, {'x': rows(number)}))
        params.append(jax.tree.map(np.asarray, state.params))
        metrics.append(jax.tree.map(float, actual))
    return params, metrics


def gradients(params: dict, x: np.ndarray) -> dict:
    """The gradient by the chain rule, float64: leaves of the trained layers by (layer, name)."""
    inputs = []
    for name in ('frozen', 'first', 'second'):
        inputs.append(x)
        x = x @ params[name, 'kernel'] + params[name, 'bias']
    result, upstream = {}, 2 * x / x.size
    for name, entering in (('second', inputs[2]), ('first', inputs[1])):
        result[name, 'kernel'] = entering.T @ upstream
        result[name, 'bias'] = upstream.sum(0)
        upstream = upstream @ params[name, 'kernel'].T
    return result


def norm(tree: dict) -> float:
    return np.sqrt(sum(np.square(leaf).sum() for leaf in tree.values()))


def adamw(number: int, params: dict, grads: dict, memory: dict) -> dict:
    updates = {}
    for key, g in grads.items():
        m, v = memory.get(key, (0.0, 0.0))
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        memory[key] = m, v
        direction = m / (1 - B1**number) / (np.sqrt(v / (1 - B2**number)) + EPS)
        updates[key] = -LR * (direction + DECAY * params[key] * (params[key].ndim > 1))
    return updates


def lars(number: int, params: dict, grads: dict, memory: dict) -> dict:
    updates = {}
    for key, g in grads.items():
        if params[key].ndim > 1:
            g = g + DECAY * params[key]
            g = g * TRUST * np.linalg.norm(params[key]) / np.linalg.norm(g)
        memory[key] = MOMENTUM * memory.get(key, 0.0) + g
        updates[key] = -LR * memory[key]
    return updates


@pytest.mark.parametrize(
    ('name', 'update', 'clip_norm'),
    [('adamw', adamw, None), ('adamw', adamw, 1.0), ('lars', lars, None)],
)
@pytest.mark.parametrize(('devices', 'fsdp', 'accumulate'), MESHES)
def test_steps_are_those_of_numpy(name, update, clip_norm, devices, fsdp, accumulate):
    states, metrics = trained(name, devices, fsdp, accumulate, clip_norm=clip_norm)
    params = {(n, k): np.float64(leaf) for n, tree in states[0].items() for k, leaf in tree.items()}
    memory = {}
    for number in range(STEPS):
        grads = gradients(params, np.float64(rows(number)))
        before = {key: params[key] for key in grads}
        clip = min(1.0, clip_norm / norm(grads)) if clip_norm else 1.0
        updates = update(number + 1, params, {k: clip * g for k, g in grads.items()}, memory)
        expected = {
            'grad_norm': norm(grads),
            'update_norm': norm(updates),
            'param_norm': norm(before),
        }
        for metric, value in expected.items():
            assert metrics[number][metric] == pytest.approx(value, rel=2e-5), (number, metric)
        params |= {key: params[key] + updates[key] for key in updates}
        for (layer, leaf), value in params.items():
            actual = states[number + 1][layer][leaf]
            np.testing.assert_allclose(actual, value, atol=2e-5, err_msg=f'{number} {layer} {leaf}')
    assert clip_norm is None or norm(grads) > clip_norm
