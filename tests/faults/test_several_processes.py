"""Several real processes over the loopback, with JAX's own CPU collectives."""

import itertools
import os
import re
import signal
import time

import pytest
from helpers.faulty_runs import (
    RUN,
    STEPS,
    check_exactly_once,
    ended,
    finish,
    given,
    last_step,
    log_of,
    losses,
    make_greys,
    spawn,
    wait_for,
    wait_until,
)

from mae_jax.checkpoints.find import steps
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.errors import EXIT_LOST, EXIT_PREEMPTED, EXIT_USER_ERROR

pytestmark = pytest.mark.slow
ENDED_BY_JAX = -signal.SIGABRT
"""How JAX's coordination service ends a process: with its own words, then abort()."""


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    return (*RUN, f'--config.dataset.path={make_greys(tmp_path_factory.mktemp("images"))}')


@pytest.fixture(scope='module')
def alone(arguments, tmp_path_factory):
    """(losses, batches) of one process."""
    root = tmp_path_factory.mktemp('alone')
    workdir, recorded = root / 'run', root / 'given'
    printed = finish(*arguments, f'--workdir={workdir}', log=root / 'log', recorded=recorded)
    assert '1 cpu device, 1 process' in printed
    return losses(workdir), given(recorded)


def said_by(log, count):
    return [log_of(log, index, count).read_text() for index in range(count)]


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_the_data_and_have_the_losses_of_one(arguments, alone, tmp_path, count):
    workdir, recorded = tmp_path / 'run', tmp_path / 'given'
    finish(
        *arguments,
        f'--workdir={workdir}',
        log=tmp_path / 'log',
        processes=count,
        recorded=recorded,
    )
    printed = said_by(tmp_path / 'log', count)
    assert re.search(rf'{count} processes: the environment names 127.0.0.1:\d+', printed[0])
    assert all('step 8/' not in other for other in printed[1:])  # one process writes logs
    assert losses(workdir) == pytest.approx(alone[0], rel=1e-5)
    assert given(recorded) == alone[1]  # row for row
    assert all(  # and each process has its share alone
        len(path.read_text().partition('\n')[0].split(': ')) - 3 == 16 // count
        for path in tmp_path.glob('given.*')
    )
    check_exactly_once(recorded)
    written = [path.name for path in (workdir / 'checkpoints').rglob('ocdbt.process_*')]
    assert len(set(written)) == count  # all wrote


def test_processes_share_canvases_and_repeated_images_too(arguments, tmp_path):
    fields = ('repeats=2', 'resize=device', 'canvas=24')
    arguments = (*arguments, *(f'--config.dataset.{field}' for field in fields))
    actual = []
    for count in (1, 2):
        workdir = tmp_path / f'run{count}'
        log = tmp_path / f'log{count}'
        finish(*arguments, f'--workdir={workdir}', log=log, processes=count)
        actual.append(losses(workdir))
    assert len(actual[0]) > 8
    assert actual[1] == pytest.approx(actual[0], rel=1e-5)


@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_ends_the_other_within_a_minute_and_the_restart_resumes(
    arguments, alone, tmp_path, killed
):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*arguments, f'--workdir={workdir}')
    processes = spawn(*arguments, log=log, processes=2)
    with ended(processes):
        assert wait_until(lambda: last_step(workdir) >= 10, processes)
        os.kill(processes[killed].pid, signal.SIGKILL)
        status = processes[1 - killed].wait(60)
    left = said_by(log, 2)[1 - killed]
    assert status in (EXIT_LOST, ENDED_BY_JAX), left
    assert f'process {1 - killed} of 2 lost another' in left or 'another task died' in left
    printed = finish(*arguments, log=log, processes=2)
    assert re.search(r'resuming at step \d+ of', printed)
    assert losses(workdir) == pytest.approx(alone[0], rel=1e-5)


def test_a_process_that_hangs_ends_the_others_within_a_minute(arguments, tmp_path):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    limit = '--config.heartbeat_timeout_s=20'
    processes = spawn(*arguments, limit, f'--workdir={workdir}', log=log, processes=2)
    with ended(processes):
        assert wait_until(lambda: last_step(workdir) >= 6, processes)
        os.kill(processes[1].pid, signal.SIGSTOP)
        start = time.monotonic()
        status = processes[0].wait(60)
        took = time.monotonic() - start
    left = said_by(log, 2)[0]
    assert status in (EXIT_LOST, ENDED_BY_JAX), left
    assert 'stopped sending heartbeats' in left and took > 10


def test_sigterm_to_one_process_saves_in_all_at_the_same_step(arguments, alone, tmp_path):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*arguments, f'--workdir={workdir}')
    processes = spawn(*arguments, log=log, processes=2)
    with ended(processes):
        assert wait_until(lambda: last_step(workdir) >= 6, processes)
        processes[1].send_signal(signal.SIGTERM)
        statuses = wait_for(processes, 60)
    printed = said_by(log, 2)
    assert statuses == [EXIT_PREEMPTED] * 2, printed
    assert ['stopping after this step (SIGTERM)' in text for text in printed] == [False, True]
    (stopped,) = {re.search(r'stopped at step (\d+) and saved', text)[1] for text in printed}
    printed = finish(*arguments, log=log, processes=2)
    assert f'resuming at step {stopped} of' in printed
    assert losses(workdir) == pytest.approx(alone[0], rel=1e-5)


def test_a_ctrl_c_that_all_processes_get_saves_in_all_at_the_same_step(arguments, tmp_path):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    processes = spawn(*arguments, f'--workdir={workdir}', log=log, processes=2)
    with ended(processes):
        assert wait_until(lambda: last_step(workdir) >= 6, processes)
        for process in processes:
            process.send_signal(signal.SIGINT)
        statuses = wait_for(processes, 60)
    printed = said_by(log, 2)
    assert statuses == [EXIT_PREEMPTED] * 2, printed
    assert all('stopping after this step; press Ctrl-C again' in text for text in printed)
    assert len({re.search(r'stopped at step (\d+) and saved', text)[1] for text in printed}) == 1
    assert 'Traceback' not in ''.join(printed)


def test_sigterm_before_the_first_step_of_a_resumed_run_stops_it_too(arguments, tmp_path):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*arguments, f'--workdir={workdir}')
    finish(*arguments, log=log, processes=2)  # to step 48; the longer run goes on from there
    arguments = (*arguments, '--config.num_steps=100000')
    (workdir / 'config.json').unlink()
    processes = spawn(*arguments, log=log, processes=2)
    with ended(processes):
        assert wait_until(lambda: 'resuming at step 48' in said_by(log, 2)[0], processes)
        processes[0].send_signal(signal.SIGTERM)
        statuses = wait_for(processes, 90)
    printed = said_by(log, 2)
    assert statuses == [EXIT_PREEMPTED] * 2, printed
    assert re.search(r'stopping after (this|the first) step \(SIGTERM\)', printed[0])
    stopped = re.search(r'stopped at step (\d+) and saved', printed[0])[1]
    assert 48 < int(stopped) < 1000


def test_a_run_is_saved_by_the_clock_of_process_0_whatever_those_of_the_others_show(
    arguments, alone, tmp_path
):
    workdir, log, recorded = tmp_path / 'run', tmp_path / 'log', tmp_path / 'given'
    fields = ('every_steps=100000', 'every_minutes=0.002')
    arguments = (*arguments, *(f'--config.checkpoint_{field}' for field in fields))
    arguments = (*arguments, '--config.keep_last=100', f'--workdir={workdir}')
    finish(*arguments, log=log, processes=2, recorded=recorded, CLOCKS_APART='1')
    saved = steps(workdir / 'checkpoints')
    assert len(saved) > 2 and saved[-1] == STEPS
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        seconds = [checkpoints.read_meta(step)['train_seconds'] for step in saved]
    assert all(late - early > 0.1 for early, late in itertools.pairwise(seconds[:-1]))
    assert losses(workdir) == pytest.approx(alone[0], rel=1e-5)


def test_what_process_0_finds_wrong_is_reported_by_all(arguments, tmp_path):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*arguments, f'--workdir={workdir}')
    holder = spawn(*arguments, '--config.num_steps=100000', log=tmp_path / 'holder')
    with ended(holder):
        assert wait_until(lambda: last_step(workdir) >= 1, holder)
        processes = spawn(*arguments, log=log, processes=2)
        with ended(processes):
            statuses = wait_for(processes, 60)
    for text in said_by(log, 2):
        assert f'held by another process ({holder[0].pid})' in text
        assert 'Traceback' not in text
    assert statuses == [EXIT_USER_ERROR] * 2


def test_a_broken_image_in_the_share_of_one_process_ends_the_other_too(tmp_path):
    images = make_greys(tmp_path / 'images')
    for path in sorted((images / 'train').rglob('*.png'))[40:42]:
        path.write_bytes(b'no image')
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*RUN, f'--config.dataset.path={images}', f'--workdir={workdir}')
    processes = spawn(*arguments, log=log, processes=2)
    with ended(processes):
        statuses = wait_for(processes, 120)
    assert EXIT_USER_ERROR in statuses
    assert set(statuses) <= {EXIT_USER_ERROR, EXIT_LOST, ENDED_BY_JAX}, said_by(log, 2)
    assert any('cannot be read as an image' in text for text in said_by(log, 2))


def test_what_process_0_fits_to_the_data_is_shared(arguments, tmp_path):
    fields = ('--config.target.name=pca', '--config.target.components=3', '--config.num_steps=4')
    actual = []
    for count in (1, 2):
        workdir, log = tmp_path / f'run{count}', tmp_path / f'log{count}'
        run = (*arguments, *fields, '--config.target.sample=40', f'--workdir={workdir}')
        printed = finish(*run, log=log, processes=count)
        assert 'PCA of 40 training crops' in printed
        actual.append(losses(workdir))
    assert actual[1] == pytest.approx(actual[0], rel=1e-5)
