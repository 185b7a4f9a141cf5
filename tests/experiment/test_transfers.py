"""Nothing is transferred between host and devices in the loop that the program does not ask for."""

import jax
import numpy as np
import pytest
from helpers.tiny_runs import pretraining

from mae_jax.experiment import train as module
from mae_jax.experiment.run import run


def test_the_loop_transfers_nothing_implicitly(monkeypatch, tmp_path, one_device):
    """Steps, logging, evaluation, pictures and checkpoints."""
    train = module.train

    def guarded(*arguments, **options):
        with jax.transfer_guard('disallow'):
            with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device'):
                jax.jit(lambda x: x)(np.ones(3))  # the guard works
            return train(*arguments, **options)

    monkeypatch.setattr(module, 'train', guarded)
    config = pretraining(log_every_steps=1, eval_every_steps=2, image_every_steps=2)
    assert int(run(config, tmp_path / 'run').step) == config.num_steps
