"""A run is lengthened by a new run from its weights, as the refusal to change its length says."""

import re

import pytest
from helpers.tiny_runs import evaluations, flat, pretraining

from mae_jax.errors import UserError
from mae_jax.experiment.run import run


def test_the_refusal_names_what_lengthens_a_run(pretrained, tmp_path):
    workdir, state = pretrained
    longer = pretraining(num_steps=6, eval_every_steps=1)
    with pytest.raises(UserError, match=r'num_steps was 4, now 6') as caught:
        run(longer, workdir)
    longer.init_from = re.search(r'--config\.init_from=(\S+)$', str(caught.value))[1]
    longer.optimizer.warmup_epochs = 1e3  # so slow that the first step moves nothing
    result = run(longer, tmp_path)
    assert int(result.step) == 6
    before = list(evaluations(workdir).values())[-1]['eval/loss']
    assert evaluations(tmp_path)[1]['eval/loss'] == pytest.approx(before, abs=1e-4)
    assert flat(result.params).keys() == flat(state.params).keys()


def test_other_fields_are_refused_without_that_advice(pretrained):
    config = pretraining()
    config.seed = 1
    with pytest.raises(UserError, match=r'seed was 0, now 1\): choose another --workdir') as caught:
        run(config, pretrained[0])
    assert 'init_from' not in str(caught.value)
