"""A program that was compiled once is loaded by the next process."""

import os
import subprocess
import sys

import jax
import pytest
from helpers.commands import ROOT
from helpers.environment import xla_flags
from helpers.faulty_runs import ended, free_port

from mae_jax.runtime.compilation_cache import keep_compiled

PROGRAM = """
import jax
from mae_jax.runtime.compilation_cache import keep_compiled
keep_compiled('/nowhere')
print(jax.jit(lambda x: x * 3 + 1)(2.0))
"""

COUNTING = """
import sys, jax, numpy as np
from jax._src import cache_key
cache_key._hash_accelerator_config = lambda *_: None  # on CPUs it differs from process to process
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split('/')[-1]))
from mae_jax.runtime.compilation_cache import keep_compiled
from mae_jax.runtime.processes import start_processes
from mae_jax.training.sharding import batch_sharding, make_mesh, put_batch
start_processes(saves=False)
keep_compiled(sys.argv[1])
mesh = make_mesh(fsdp=2)
batch = put_batch(mesh, {'rows': np.full((1, 2), jax.process_index() + 1.0, np.float32)})
total = jax.jit(lambda batch: (batch['rows'] ** 2).sum())(batch)  # a sum over both processes
print(float(total), events.count('compile_requests_use_cache'), events.count('cache_hits'))
jax.distributed.shutdown()
"""
"""A program of several processes; prints how many programs it asked for and how many it loaded."""


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
    """Runs two processes to their end; returns what each printed."""
    address = f'127.0.0.1:{free_port()}'
    shared = {
        'XLA_FLAGS': xla_flags(),
        'JAX_PLATFORMS': 'cpu',
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': '2',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    own = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'} | shared
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', COUNTING, str(workdir)],
            cwd=ROOT,
            env=own | {'JAX_PROCESS_ID': str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    with ended(processes):
        printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    return printed


@pytest.mark.slow
def test_the_second_start_of_several_processes_compiles_nothing(tmp_path):
    printed = start_two(tmp_path)
    assert f'compiled programs are kept in {tmp_path}/compiled\n' in printed[0]
    first, second = (text.splitlines()[-1] for text in printed)
    assert first == '10.0 1 0'
    assert second in ('10.0 1 0', '10.0 1 1')  # process 0 may already have written the program
    assert [text.splitlines()[-1] for text in start_two(tmp_path)] == ['10.0 1 1'] * 2
