"""Schedule, decay rule and AdamW against formulas written by hand in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mae_jax.errors import UserError
from mae_jax.training.optimizer import (
    decays,
    make_optimizer,
    make_schedule,
    merge_params,
    split_params,
)

ADAMW = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)


def original_rate(step, steps_per_epoch, peak, minimum, warmup_epochs, epochs):
    """The original's rule, in fractions of an epoch."""
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize('minimum', [0.0, 1e-6])
def test_learning_rate_is_the_originals_at_every_step(minimum):
    schedule = make_schedule(peak=2.4e-3, total_steps=700, warmup_steps=35, minimum=minimum)
    expected = [original_rate(s, 7, 2.4e-3, minimum, 5, 100) for s in range(700)]
    np.testing.assert_allclose([schedule(s) for s in range(700)], expected, atol=2e-9)


def test_first_update_of_a_warm_up_is_zero_and_no_warm_up_starts_at_the_peak():
    assert make_schedule(peak=1.0, total_steps=10, warmup_steps=2)(0) == 0
    assert make_schedule(peak=1.0, total_steps=10)(0) == 1
    assert make_schedule(peak=1.0, total_steps=10)(10) == pytest.approx(0, abs=1e-7)


def test_decay_spares_biases_and_norms_only():
    params = {
        'cls_token': jnp.ones((1, 1, 4)),
        'norm': {'scale': jnp.ones(4), 'bias': jnp.ones(4)},
        'fc1': {'kernel': jnp.ones((4, 4)), 'bias': jnp.ones(4)},
    }
    assert decays(params) == {
        'cls_token': True,
        'norm': {'scale': False, 'bias': False},
        'fc1': {'kernel': True, 'bias': False},
    }


def test_adamw_decays_by_the_learning_rate_and_spares_vectors():
    """Thirty steps against Loshchilov and Hutter's Algorithm 2 in NumPy."""
    rng = np.random.default_rng(0)
    params = {'kernel': rng.normal(size=(3, 2)), 'bias': rng.normal(size=2)}
    schedule = make_schedule(peak=0.1, total_steps=30, warmup_steps=5)
    tx = make_optimizer('adamw', schedule, **ADAMW)
    ours = jax.tree.map(jnp.float32, params)
    state = tx.init(ours)
    moments = {name: (0.0, 0.0) for name in params}
    for step in range(30):
        grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
        updates, state = tx.update(jax.tree.map(jnp.float32, grads), state, ours)
        ours = optax.apply_updates(ours, updates)
        rate = original_rate(step, 1, 0.1, 0.0, 5, 30)
        for name, grad in grads.items():
            first, second = moments[name]
            first, second = 0.9 * first + 0.1 * grad, 0.95 * second + 0.05 * grad**2
            moments[name] = first, second
            first, second = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.95 ** (step + 1))
            decay = 0.05 * params[name] if name == 'kernel' else 0
            params[name] = params[name] - rate * (first / (np.sqrt(second) + 1e-8) + decay)
    for name in params:
        np.testing.assert_allclose(ours[name], params[name], atol=1e-5)


def test_clipping_bounds_the_global_norm_and_is_off_by_default():
    params = {'a': jnp.zeros(2), 'b': jnp.zeros(2)}
    grads = {'a': jnp.full(2, 30.0), 'b': jnp.full(2, 40.0)}
    # Adam's first update does not depend on the gradient's size, its second moment does.
    tx = make_optimizer('adamw', lambda _: 1.0, clip_norm=1.0, **ADAMW)
    clipped = tx.update(grads, tx.init(params), params)[1]
    free_tx = make_optimizer('adamw', lambda _: 1.0, **ADAMW)
    free = free_tx.update(grads, free_tx.init(params), params)[1]

    def first_moment(state):
        return optax.tree_utils.tree_get(state, 'mu')['a'][0]

    assert first_moment(free) == pytest.approx(3.0)
    assert first_moment(clipped) == pytest.approx(3.0 / np.sqrt(5000))


def test_unknown_optimizer_is_named():
    with pytest.raises(UserError, match='sgdx'):
        make_optimizer('sgdx', lambda _: 1.0, **ADAMW)


def test_frozen_parameters_are_split_off_by_name_and_merged_back():
    params = {'encoder': {'pos_embed': 1, 'norm': {'scale': 2}}, 'decoder': {'pos_embed': 3}}
    trained, frozen = split_params(params, lambda path: not path.endswith('pos_embed'))
    assert trained == {'encoder': {'norm': {'scale': 2}}}
    assert frozen == {'encoder': {'pos_embed': 1}, 'decoder': {'pos_embed': 3}}
    assert merge_params(trained, frozen) == params
