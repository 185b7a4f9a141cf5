"""Processes that never find each other, and coordinators that cannot start, end with a sentence."""

import re
import socket

import pytest
from helpers.faulty_runs import RUN, ended, free_port, spawn, wait_for, wait_until

from mae_jax.errors import EXIT_LOST, EXIT_USER_ERROR

pytestmark = pytest.mark.slow
LIMIT = 10


def start(tmp_path, number: int, of: int, address: str, limit: int = LIMIT):
    """Starts one process of a run, and returns it with the path of its output."""
    log = tmp_path / f'log{number}'
    arguments = (*RUN, f'--config.connect_timeout_s={limit}', f'--workdir={tmp_path}/run')
    environment = {'JAX_NUM_PROCESSES': str(of), 'JAX_PROCESS_ID': str(number)}
    (process,) = spawn(*arguments, log=log, JAX_COORDINATOR_ADDRESS=address, **environment)
    return process, log


def sentence(log) -> str:
    """Returns the last line of an output that has no traceback, neither Python's nor XLA's."""
    printed = log.read_text()
    assert 'Traceback' not in printed and 'stack trace' not in printed, printed
    return printed.splitlines()[-1]


def wait_until_listening(address: str, process) -> None:
    host, port = address.split(':')

    def listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    assert wait_until(listening, [process])


def test_processes_that_wait_for_one_that_never_comes(tmp_path):
    address = f'127.0.0.1:{free_port()}'
    processes, logs = zip(*(start(tmp_path, i, 3, address) for i in range(2)), strict=True)
    with ended(processes):
        assert wait_for(processes, 120) == [EXIT_LOST] * 2
    for log in logs:
        assert re.search(
            f'names {address} as coordinator, but not all processes connected within {LIMIT} s '
            rf'\(config.connect_timeout_s\): {address} (answers|cannot be reached)',
            sentence(log),
        )
    assert f'{address} answers, so another process was not started' in sentence(logs[0])


@pytest.mark.parametrize(
    ('host', 'reason'),
    [('127.0.0.1', 'Connection refused'), ('no-such-host.invalid', 'Name or service not known')],
)
def test_a_coordinator_that_is_not_there(tmp_path, host, reason):
    process, log = start(tmp_path, 1, 2, f'{host}:{free_port()}')
    with ended([process]):
        assert wait_for([process], 120) == [EXIT_LOST]
    assert f'cannot be reached from here ({reason}); process 0 must run there' in sentence(log)


def test_two_runs_with_one_address(tmp_path):
    """JAX lets both listen there, and gives processes of one to the other."""
    address = f'127.0.0.1:{free_port()}'
    first, _ = start(tmp_path, 0, 2, address, limit=100)
    (tmp_path / 'other').mkdir()
    with ended([first]):
        wait_until_listening(address, first)
        second, log = start(tmp_path / 'other', 0, 2, address)
        with ended([second]):
            assert wait_for([second], 120) == [EXIT_USER_ERROR]
        assert f'{address}: another program uses that port' in sentence(log)


@pytest.mark.parametrize('field', ['connect_timeout_s', 'heartbeat_timeout_s'])
def test_a_time_limit_that_cannot_be_kept_is_refused(command, tmp_path, field):
    status, printed = command(*RUN, f'--config.{field}=0', f'--workdir={tmp_path}/run')
    assert status == EXIT_USER_ERROR
    assert f'{field}=0.0 must be at least 1' in printed
