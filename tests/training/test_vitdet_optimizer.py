"""ViTDet's learning rate and weight decay: the numbers of its published configs."""

import jax
import numpy as np
import pytest

from mae_jax.errors import UserError
from mae_jax.training.optimizer import decays_but_norms, make_schedule


@pytest.mark.parametrize('epochs, total', [(100, 184_375), (75, 138_281)])
def test_vitdets_rate_is_divided_by_ten_at_its_steps(epochs, total):
    """Milestones and warm-up are those of its published configs, for batches of 64."""
    first, second = (step * epochs // 100 for step in (163_889, 177_546))
    schedule = make_schedule(
        peak=1e-4,
        total_steps=total,
        warmup_steps=250,
        shape='steps',
        warmup_from=0.001,
        drop_at=(8 / 9, 26 / 27),
    )
    expected = {0: 1e-7, 125: 0.5005e-4, 250: 1e-4, first - 1: 1e-4, first: 1e-5}
    expected |= {second - 1: 1e-5, second: 1e-6, total - 1: 1e-6}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5), step
        assert float(jax.jit(schedule)(step)) == pytest.approx(rate, rel=1e-5), step


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'drop_at': (0.9, 0.5)}, 'optimizer.drop_at=.*ascending'),
        ({'drop_at': (1000,)}, 'optimizer.drop_at=.*from 0 to 1'),
        ({'warmup_from': 2.0}, 'optimizer.warmup_from=2.0'),
    ],
)
def test_steps_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_schedule(peak=1.0, total_steps=9, shape='steps', **fields)


def test_vitdet_decays_all_but_norms_and_absolute_positions():
    norm = {'scale': np.ones(3), 'bias': np.ones(3)}
    dense = {'kernel': np.ones((3, 3)), 'bias': np.ones(3)}
    params = {
        'encoder': {
            'pos_embed': np.ones((1, 4, 3)),
            'blocks': {'block_0': {'norm1': norm, 'attention': {'rel_pos_h': np.ones((3, 2))}}},
        },
        'pyramid': {'conv': dense, 'norm': norm},
    }
    spared = {'scale': False, 'bias': False}
    assert decays_but_norms(params) == {
        'encoder': {
            'pos_embed': False,
            'blocks': {'block_0': {'norm1': spared, 'attention': {'rel_pos_h': True}}},
        },
        'pyramid': {'conv': {'kernel': True, 'bias': True}, 'norm': spared},
    }
