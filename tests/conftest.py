"""What every test shares: eight virtual CPU devices, finished runs, and the real command.

What imports JAX is imported by fixtures: the process that only hands tests to others needs none.
"""

import functools
import gc
import os
import shutil
import tracemalloc

import pytest
from helpers.environment import default_environment

os.environ.update(default_environment())  # before NumPy and JAX are imported

import helpers.check_signatures  # noqa: F401  first: what is imported before is not checked
from helpers.commands import make_tiny_config, start


def pytest_collection_finish():
    """Spares the modules' many objects a tenth of the processor time: no collection visits them."""
    gc.freeze()


@pytest.fixture
def tiny_config():
    return make_tiny_config()


@pytest.fixture(scope='session')
def run_once(tmp_path_factory):
    """run_once(name, config) -> (directory, state, config) of a run that all processes share."""
    from helpers.shared_runs import shared_run

    return functools.partial(shared_run, tmp_path_factory)


@pytest.fixture(scope='session')
def pretrained(run_once):
    """A finished pretraining run that others start from: (its directory, its state)."""
    from helpers.tiny_runs import pretraining

    return run_once('pretrained', pretraining())[:2]


@pytest.fixture(scope='session')
def fine_tuned(pretrained, run_once, tmp_path_factory):
    """The pretrained model fine-tuned with averages: (directory, state, config).

    What it started from is not there any more.
    """
    from helpers.shared_runs import shared_folder, temporary_copy
    from helpers.tiny_runs import AVERAGED, classifying

    from configs import finetune

    source = shared_folder(tmp_path_factory) / 'fine_tuned_from'
    config = classifying(finetune.get_config, source, AVERAGED)
    copied = temporary_copy(pretrained[0], source)
    return run_once('fine_tuned', config, within=copied)


@pytest.fixture
def one_device(request):
    """Runs in the process of a test use one device, or `n` under `@pytest.mark.devices(n)`.

    One compiles sooner than eight.
    """
    from helpers.shared_runs import first_devices

    marker = request.node.get_closest_marker('devices')
    with first_devices(marker.args[0] if marker else 1):
        yield


@pytest.fixture
def work_directory(pretrained, tmp_path):
    """A copy of a finished run with one checkpoint, under another step."""
    from mae_jax.checkpoints.find import steps

    source, _ = pretrained
    target = tmp_path / 'theirs'
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what only an accelerator can show where JAX has none."""
    if not any(item.get_closest_marker('accelerator') for item in items):
        return
    import jax

    if jax.default_backend() == 'cpu':
        skip = pytest.mark.skip(reason='needs a GPU or TPU')
        for item in items:
            if item.get_closest_marker('accelerator'):
                item.add_marker(skip)
