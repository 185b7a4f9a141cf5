"""What a process may use of its machine."""

import os

import pytest

from mae_jax.runtime import cores
from mae_jax.runtime.cores import available_memory, num_cores, processes_here


@pytest.fixture
def container(tmp_path, monkeypatch):
    """container(file=text, ...) sets the limits of a container."""
    monkeypatch.setattr(cores, 'CGROUP', tmp_path)
    monkeypatch.setattr(cores, '_bound_to', lambda: set(range(16)))

    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace('_', '.')).write_text(text)

    return write


@pytest.mark.parametrize(
    ('limit', 'expected'),
    [('max 100000\n', 16), ('400000 100000\n', 4), ('50000 100000', 1), ('9999999 100000', 16)],
)
def test_a_limit_of_processor_time_counts_as_cores(container, limit, expected):
    container(cpu_max=limit)
    assert num_cores() == expected


def test_without_a_container_the_cores_are_those_the_process_is_bound_to(container):
    assert num_cores() == 16


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='Linux')
def test_available_memory_is_what_the_system_reports(container):
    pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    assert 0 < available_memory() <= pages
    container(memory_max='5000000\n', memory_current='2000000\n')
    assert available_memory() == 3_000_000
    container(memory_max='max\n')
    assert available_memory() > 3_000_000


def test_a_single_process_shares_its_cores_with_no_other():
    assert processes_here() == 1


def test_processes_count_that_have_the_same_cores_of_the_same_machine(monkeypatch):
    import numpy as np

    def gathered(own):
        other = own.copy()
        other[0] += 1  # another machine, or other cores
        return np.stack([own, other, own, other, own])

    monkeypatch.setattr(cores.jax, 'process_count', lambda: 5)
    monkeypatch.setattr(cores.multihost_utils, 'process_allgather', gathered)
    assert processes_here() == 3
