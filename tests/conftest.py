"""What every test shares: eight virtual CPU devices, and a run of the real command."""

import atexit
import os
import shutil
import tempfile
import tracemalloc

import pytest

# All are read when JAX is imported. Most of a test's time is compilation, hence the level, and a
# cache in which the tests, and the commands they start, find what another has compiled.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = tempfile.mkdtemp(prefix='mae_jax_tests_')
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0',
)

from commands import make_tiny_config, start
from tiny_runs import AVERAGED, classifying, pretraining

from configs import finetune


@pytest.fixture
def tiny_config():
    return make_tiny_config()


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory):
    """A finished pretraining run that others start from: (its directory, its state)."""
    from mae_jax.run import run

    workdir = tmp_path_factory.mktemp('pretrained') / 'run'
    return workdir, run(pretraining(), workdir)


@pytest.fixture(scope='session')
def fine_tuned(pretrained, tmp_path_factory):
    """The pretrained model fine-tuned with averages: (directory, state, config).

    What it started from is no longer there.
    """
    from mae_jax.run import run

    root = tmp_path_factory.mktemp('fine_tuned')
    source = shutil.copytree(pretrained[0], root / 'pretrained')
    config = classifying(finetune.get_config, source, AVERAGED)
    state = run(config, root / 'run')
    shutil.rmtree(source)
    return root / 'run', state, config


@pytest.fixture
def work_directory(pretrained, tmp_path):
    """A copy of a finished run with one checkpoint, under another step."""
    source, _ = pretrained
    target = tmp_path / 'theirs'
    from mae_jax.find_checkpoint import steps

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
