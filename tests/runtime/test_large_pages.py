"""A command that trains on a CPU starts again with large pages, once, and as it was started."""

import json
import os
import subprocess
import sys

import pytest

from mae_jax.runtime.large_pages import SETTING

PROGRAM = """
import json, os, sys
from mae_jax.runtime.large_pages import start_with_large_pages
print('started', flush=True)
start_with_large_pages()
print(json.dumps([os.environ.get('GLIBC_TUNABLES'), os.getpid(), sys.argv, sys.flags.optimize]))
"""

needs_madvise = pytest.mark.skipif(
    not SETTING.exists() or '[madvise]' not in SETTING.read_text(), reason='the kernel decides'
)


def start(tmp_path, **variables):
    """Returns how often the program was started, and the tunables it saw."""
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM)
    environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
    process = subprocess.Popen(
        [sys.executable, '-O', program, '--config=x', 'two words'],
        env=environment | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.getcwd()} | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    *started, report = process.communicate()[0].splitlines()
    assert process.returncode == 0
    tunables, pid, argv, optimize = json.loads(report)
    assert (pid, argv[1:], optimize) == (process.pid, ['--config=x', 'two words'], 1)
    return len(started), tunables


@needs_madvise
def test_on_a_cpu_the_command_starts_once_more_in_its_place(tmp_path):
    assert start(tmp_path) == (2, 'glibc.malloc.hugetlb=1')


@needs_madvise
@pytest.mark.parametrize('variables', [{'JAX_PLATFORMS': 'cuda,cpu'}, {'GLIBC_TUNABLES': ''}])
def test_with_a_gpu_or_a_setting_of_the_user_it_does_not(tmp_path, variables):
    assert start(tmp_path, **variables) == (1, variables.get('GLIBC_TUNABLES'))
