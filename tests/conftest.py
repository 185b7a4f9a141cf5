"""What every test shares: eight virtual CPU devices, and a run of the real command."""

import os

import pytest

# Both are read when JAX is imported. Most of a test's time is compilation, hence the level.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0',
)

from commands import make_tiny_config, start


@pytest.fixture
def tiny_config():
    return make_tiny_config()


@pytest.fixture
def command():
    """Runs the real command to its end: command(*arguments) -> (exit status, output)."""

    def run(*arguments: str) -> tuple[int, str]:
        process = start(*arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    return run
