"""Environment variables of the test processes and of the commands that tests start."""

import atexit
import os
import shutil
import tempfile

DEVICES = 8
QUICK_TO_COMPILE = ' '.join(
    (
        '--xla_backend_optimization_level=0',
        '--xla_cpu_parallel_codegen_split_count=1',
        '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters',
    )
)
"""XLA's flags for programs that run only a few times: compiling takes half the processor time."""


def xla_flags(devices: int = 1) -> str:
    """Returns XLA's flags for a process with `devices` virtual CPU devices."""
    return f'{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={devices}'


def default_environment() -> dict[str, str]:
    """Returns the variables that NumPy, JAX and XLA read on import, as far as they are not set.

    Among them a directory of compiled programs that the test processes share; it is removed when
    the process that made it ends.
    """
    variables = {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': xla_flags(DEVICES),
        'OPENBLAS_NUM_THREADS': '1',  # the test processes keep all cores busy as it is
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # it compiles for TPUs that are not there
        'PYTHONUNBUFFERED': '1',  # what a command prints to both its outputs stays in order
    }
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        cache = tempfile.mkdtemp(prefix='mae_jax_tests_')
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
        variables |= {
            'JAX_COMPILATION_CACHE_DIR': cache,
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
        }
    return {name: value for name, value in variables.items() if name not in os.environ}
