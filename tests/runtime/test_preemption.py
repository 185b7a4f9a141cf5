import os
import signal
import threading
import time

import pytest
from helpers.metadata_server import metadata_server

from mae_jax.runtime import preemption
from mae_jax.runtime.interrupts import AGAIN, STATUS, Interrupts
from mae_jax.runtime.preemption import STOPPED, STOPPING, stop_requests


def test_sigterm_and_ctrl_c_ask_to_stop_and_the_old_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with stop_requests() as stopping:
            assert not stopping(1)
            os.kill(os.getpid(), number)
            assert stopping(2)
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_a_second_ctrl_c_stops_at_once(capfd):
    with pytest.raises(KeyboardInterrupt), stop_requests():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert capfd.readouterr().err == f'{STOPPING}; {AGAIN}\n'


@pytest.fixture
def interrupts(monkeypatch):
    """The handler of a command, and the statuses that it ends this process with."""
    exits, handler = [], Interrupts()
    monkeypatch.setattr(os, '_exit', exits.append)
    before = {number: signal.signal(number, handler) for number in STATUS}
    yield handler, exits
    for number, other in before.items():
        signal.signal(number, other)


def test_in_a_command_it_stops_at_once_before_the_first_step_and_then_saves(interrupts, capfd):
    interrupts, exits = interrupts
    with stop_requests(first_step=6) as stopping:
        interrupts.answer(signal.SIGINT)
        assert exits == [130] and not stopping(7)
        interrupts.answer(signal.SIGINT)
        assert exits == [130] and stopping(8)
        interrupts.answer(signal.SIGINT)
        assert exits == [130, 130]
    assert signal.getsignal(signal.SIGINT) is interrupts
    assert capfd.readouterr().err == f'stopped\n{STOPPING}; {AGAIN}\n{STOPPED}\n'


def test_in_a_command_sigterm_is_answered_too_and_a_scheduler_may_repeat_it(interrupts, capfd):
    interrupts, exits = interrupts
    with stop_requests() as stopping:
        interrupts.answer(signal.SIGTERM)
        assert exits == [143] and not stopping(1)
        for _ in range(3):
            interrupts.answer(signal.SIGTERM)
        assert exits == [143] and stopping(2)
        interrupts.answer(signal.SIGINT)
        assert exits == [143]
        interrupts.answer(signal.SIGINT)
        assert exits == [143, 130]
    lines = 'stopped', f'{STOPPING} (SIGTERM)', f'{STOPPING}; {AGAIN}', STOPPED
    assert capfd.readouterr().err.splitlines() == list(lines)


def test_another_thread_than_the_first_cannot_be_asked():
    answers = []

    def run():
        with stop_requests() as stopping:
            answers.append(stopping(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [False]


@pytest.fixture
def metadata(monkeypatch):
    monkeypatch.setattr(preemption, 'POLL_S', 0.05)
    with metadata_server() as (address, answers, asked):
        monkeypatch.setenv('GCE_METADATA_IP', address)
        yield answers, asked


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(
    ('key', 'value'),
    [('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE'), ('preempted', 'TRUE')],
)
def test_a_notice_of_the_cloud_asks_to_stop(metadata, key, value):
    answers, asked = metadata
    with stop_requests() as stopping:
        assert wait(lambda: len(asked) >= 4)
        assert not stopping(1)
        answers[key] = value
        assert wait(lambda: stopping(2))
    paths = {path for path, _ in asked}
    assert paths == {
        '/computeMetadata/v1/instance/maintenance-event',
        '/computeMetadata/v1/instance/preempted',
    }
    assert {flavor for _, flavor in asked} == {'Google'}


def test_a_live_migration_and_a_missing_server_ask_for_nothing(metadata, monkeypatch):
    answers, asked = metadata
    answers['maintenance-event'] = 'MIGRATE_ON_HOST_MAINTENANCE'
    with stop_requests() as stopping:
        assert wait(lambda: len(asked) >= 4) and not stopping(1)
    monkeypatch.setenv('GCE_METADATA_IP', '127.0.0.1:9')
    with stop_requests() as stopping:
        time.sleep(0.3)
        assert not stopping(1)


def test_a_notice_from_before_the_start_stops_nothing_until_another_comes(metadata):
    answers, asked = metadata
    answers['maintenance-event'] = 'TERMINATE_ON_HOST_MAINTENANCE'
    with stop_requests() as stopping:
        assert wait(lambda: len(asked) >= 6) and not stopping(1)
        answers['preempted'] = 'TRUE'
        assert wait(lambda: stopping(2))
