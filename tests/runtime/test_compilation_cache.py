"""A program that was compiled once is loaded by the next process."""

import os
import shutil
import subprocess
import sys

import jax
import pytest
from helpers.commands import ROOT, TINY
from helpers.environment import xla_flags
from helpers.faulty_runs import ended, free_port

from mae_jax.runtime.compilation_cache import keep_compiled

PROGRAM = """
import jax
from mae_jax.runtime.compilation_cache import keep_compiled
keep_compiled('/nowhere')
print(jax.jit(lambda x: x * 3 + 1)(2.0))
"""

COUNTING_MAIN = """
import atexit, sys, jax
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split('/')[-1]))
count = lambda: print('programs', events.count('compile_requests_use_cache'), flush=True)
hits = lambda: print('hits', events.count('cache_hits'), flush=True)
atexit.register(hits), atexit.register(count)
from mae_jax.__main__ import main
main(['train', *sys.argv[1:]], 'main.py')
"""
"""main.py, which prints at its exit how many programs it asked for, and how many were loaded."""


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
    keep_compiled('/nowhere')
    assert jax.config.jax_compilation_cache_dir == before


def start_two(workdir):
    """Runs two processes to their end: the output of each, and its (programs, hits)."""
    address = f'127.0.0.1:{free_port()}'
    shared = {
        'XLA_FLAGS': xla_flags(),
        'JAX_PLATFORMS': 'cpu',
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': '2',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', COUNTING_MAIN, *TINY, f'--workdir={workdir}'],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
            | shared
            | {'JAX_PROCESS_ID': str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    with ended(processes):
        printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    counts = [tuple(int(line.split()[-1]) for line in text.splitlines()[-2:]) for text in printed]
    return printed, counts


@pytest.mark.slow
def test_the_second_start_of_several_processes_compiles_nothing(tmp_path):
    printed, counts = start_two(tmp_path / 'run')
    assert f'compiled programs are kept in {tmp_path}/run/compiled' in printed[0]
    assert 'compiled programs' not in printed[1]
    assert all(programs > hits for programs, hits in counts)
    shutil.rmtree(tmp_path / 'run/checkpoints')  # the same steps again
    _, counts = start_two(tmp_path / 'run')
    assert all(programs == hits > 10 for programs, hits in counts), counts
