"""Directories with checkpoints."""

import shutil

import pytest
from helpers.checkpoints import make_state

from mae_jax.checkpoints.manager import Checkpoints


@pytest.fixture(scope='package')
def two_steps(tmp_path_factory):
    """A directory with intact checkpoints of steps 1 and 2, to be copied and not changed."""
    directory = tmp_path_factory.mktemp('two') / 'checkpoints'
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, make_state(1), {'seed': 1})
        checkpoints.save(2, make_state(2), {'seed': 2})
    return directory


@pytest.fixture
def copied(two_steps, tmp_path):
    """A copy of `two_steps` that a test may change."""
    return shutil.copytree(two_steps, tmp_path / 'checkpoints')
