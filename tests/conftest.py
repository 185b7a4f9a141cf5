"""What every test shares: eight virtual CPU devices, and a run of the real command."""

import fcntl
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.environment import default_environment

os.environ.update(default_environment())  # before NumPy and JAX are imported

import helpers.check_signatures  # noqa: F401  first: what is imported before is not checked
from helpers.commands import make_tiny_config, start
from helpers.tiny_runs import AVERAGED, classifying, pretraining
from helpers.tiny_runs import start as state_of

from configs import finetune


@pytest.fixture
def tiny_config():
    return make_tiny_config()


def shared_folder(tmp_path_factory) -> Path:
    """Of all processes that share in these tests."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if 'PYTEST_XDIST_WORKER' in os.environ else own


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A copy of the directory that `make` made for whichever test process came first."""
    shared = shared_folder(tmp_path_factory) / f'shared_{name}' / 'run'
    shared.parent.mkdir(exist_ok=True)
    with open(shared.parent / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            make(shared)
        return shutil.copytree(shared, tmp_path_factory.mktemp(name) / 'run')


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory):
    """A finished pretraining run that others start from: (its directory, its state)."""
    from mae_jax.experiment.run import run

    workdir = made_once(tmp_path_factory, 'pretrained', lambda path: run(pretraining(), path))
    return workdir, state_of(pretraining(), workdir)


@pytest.fixture(scope='session')
def fine_tuned(pretrained, tmp_path_factory):
    """The pretrained model fine-tuned with averages: (directory, state, config).

    What it started from is no longer there.
    """
    from mae_jax.experiment.run import run

    source = shared_folder(tmp_path_factory) / 'fine_tuned_from'
    config = classifying(finetune.get_config, source, AVERAGED)

    def make(path):
        shutil.copytree(pretrained[0], source)
        run(config, path)
        shutil.rmtree(source)

    workdir = made_once(tmp_path_factory, 'fine_tuned', make)
    return workdir, state_of(config, workdir), config


@pytest.fixture
def work_directory(pretrained, tmp_path):
    """A copy of a finished run with one checkpoint, under another step."""
    source, _ = pretrained
    target = tmp_path / 'theirs'
    from mae_jax.checkpoints.find import steps

    (target / 'checkpoints').mkdir(parents=True)
    (target / 'config.json').write_bytes((source / 'config.json').read_bytes())
    last = max(steps(source / 'checkpoints'))
    step = target / 'checkpoints/2'
    shutil.copytree(source / f'checkpoints/{last}', step)
    return target


@pytest.fixture
def allocations():
    """How many bytes Python and NumPy have allocated at most, since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.fixture
def command():
    """Runs the real command to its end: command(*arguments) -> (exit status, output)."""

    def run(*arguments: str) -> tuple[int, str]:
        process = start(*arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    return run
