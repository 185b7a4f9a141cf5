"""A program that was compiled once is loaded by the next process."""

import os
import subprocess
import sys

import jax
import pytest
from helpers.commands import ROOT

from mae_jax.runtime.compilation_cache import keep_compiled

PROGRAM = """
import jax
from mae_jax.runtime.compilation_cache import keep_compiled
keep_compiled()
print(jax.jit(lambda x: x * 3 + 1)(2.0))
"""


def run(home, **variables):
    """Runs the program in a process whose caches are below `home`; returns if it was cached."""
    cache = ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE')
    environment = {k: v for k, v in os.environ.items() if k not in cache}
    environment |= {
        'XDG_CACHE_HOME': str(home),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
        'JAX_LOGGING_LEVEL': 'DEBUG',
    }
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == 7
    return 'Persistent compilation cache hit' in done.stderr


@pytest.mark.slow
def test_the_second_process_compiles_nothing_and_a_damaged_entry_does_not_stop_it(tmp_path):
    assert not run(tmp_path)
    entries = list((tmp_path / 'mae_jax').glob('*-cache'))
    assert entries
    assert run(tmp_path)
    for entry in entries:
        os.truncate(entry, 20)
    assert not run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    'variables', [{'JAX_ENABLE_COMPILATION_CACHE': 'false'}, {'XDG_CACHE_HOME': '/proc/none'}]
)
def test_without_a_cache_the_program_runs_all_the_same(tmp_path, variables):
    assert not run(tmp_path, **variables)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_jax_was_given_stays():
    before = jax.config.jax_compilation_cache_dir
    assert before
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == before
