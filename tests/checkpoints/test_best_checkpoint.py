"""The best checkpoint is kept beside the latest, and damage to one is no damage to the choice."""

import jax.numpy as jnp
import pytest

from mae_jax.checkpoints.manager import Checkpoints

STATE = {'params': {'encoder': {'kernel': jnp.ones((4, 2))}}, 'step': jnp.int32(0)}


def scored(directory, log=None):
    append = (log if log is not None else []).append
    return Checkpoints(directory, keep_last=1, score='top1', log=append)


@pytest.fixture
def kept(tmp_path):
    """Steps 1 to 4, of which 2 was the best."""
    with scored(tmp_path) as checkpoints:
        for step, score in enumerate((0.3, 0.9, 0.5, 0.4), start=1):
            checkpoints.save(step, STATE, {'top1': score})
    return tmp_path


def test_the_best_stays_and_also_after_a_restart(kept):
    with scored(kept) as checkpoints:
        assert checkpoints.steps() == [2, 4]
        assert checkpoints.best() == (2, 0.9)
        assert not checkpoints.is_best(0.8) and checkpoints.is_best(0.95)
        checkpoints.save(5, STATE, {'top1': 0.1})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5]


def test_the_newest_of_equals_is_the_best(kept):
    with scored(kept) as checkpoints:
        checkpoints.save(5, STATE, {'top1': 0.9})
        checkpoints.wait()
        assert checkpoints.best() == (5, 0.9)


def test_a_checkpoint_without_a_score_is_never_the_best(kept):
    with scored(kept) as checkpoints:
        assert not checkpoints.is_best(None)
        checkpoints.save(5, STATE, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5] and checkpoints.best() == (2, 0.9)


def test_a_score_that_cannot_be_read_does_not_stop_a_run_from_starting(kept):
    (kept / '2' / 'meta' / 'metadata').write_text('{"top1": 0.')
    with scored(kept) as checkpoints:
        assert checkpoints.best() == (4, 0.4)
        assert checkpoints.restore(STATE)[1] == 4


def test_a_damaged_best_does_not_count_and_can_be_beaten(tmp_path):
    with scored(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, {'top1': 0.5})
    with Checkpoints(tmp_path, keep_last=2, score='top1') as checkpoints:
        checkpoints.save(2, STATE, {'top1': 0.9})
    (tmp_path / '2' / 'checksums.txt').write_text('00000000\n{}')
    log = []
    with scored(tmp_path, log) as checkpoints:
        assert checkpoints.restore(STATE)[1] == 1 and 'step 2' in log[0]
        assert checkpoints.best() == (1, 0.5) and checkpoints.is_best(0.7)
        checkpoints.save(2, STATE, {'top1': 0.7})
        checkpoints.wait()
        assert checkpoints.best() == (2, 0.7)
