"""A real run, really killed: what it ends with is what the undisturbed run ends with."""

import signal
import subprocess

import pytest
from helpers.faulty_runs import (
    RUN,
    STEPS,
    check_exactly_once,
    ended,
    finish,
    is_evaluating,
    is_saving,
    kill_when,
    last_step,
    losses,
    make_greys,
    parameters,
    spawn,
    wait_until,
)
from helpers.metadata_server import metadata_server

PROBED = (*RUN, '--config.probe_at_end=True')  # so that there is an end to be killed at


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return make_greys(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def undisturbed(images, tmp_path_factory):
    """(parameters, losses) of a run that nothing happened to."""
    root = tmp_path_factory.mktemp('undisturbed')
    workdir = root / 'run'
    finish(
        *PROBED,
        f'--config.dataset.path={images}',
        f'--workdir={workdir}',
        log=root / 'log',
        recorded=root / 'given',
    )
    check_exactly_once(root / 'given')
    return parameters(workdir), losses(workdir)


def moments(workdir, log):
    """Twenty, in the order in which a run that goes on after each of them reaches them."""

    def printed(text):
        return lambda: text in log.read_text()

    def stepped(step):
        return lambda: last_step(workdir) >= step

    def saving(step):
        return lambda: last_step(workdir) >= step and is_saving(workdir)

    def evaluating(step):
        return lambda: is_evaluating(workdir, step)

    compiling = printed('compiling the step')
    return [
        lambda: (workdir / 'config.json').exists(),
        compiling,
        stepped(2),
        saving(4),
        compiling,
        stepped(6),
        evaluating(8),
        saving(12),
        printed('resuming at step'),
        stepped(14),
        evaluating(16),
        saving(20),
        stepped(22),
        evaluating(24),
        saving(28),
        compiling,
        stepped(34),
        stepped(39),
        lambda: (workdir / 'checkpoints' / str(STEPS)).exists() or saving(STEPS)(),
        printed(f'finished at step {STEPS}'),
    ]


SAMPLED = (1, 3, 6, 16, 19)
"""Moments of the quick sample: compiling, saving, the first evaluation, between steps, the end."""


@pytest.mark.parametrize(
    'sample',
    [
        pytest.param(SAMPLED, marks=pytest.mark.slow, id='five'),
        pytest.param(range(20), marks=pytest.mark.exhaustive, id='twenty'),
    ],
)
def test_sigkills_leave_parameters_and_data_of_the_undisturbed_run(
    undisturbed, images, tmp_path, sample
):
    workdir, log, recorded = tmp_path / 'run', tmp_path / 'log', tmp_path / 'given'
    arguments = (*PROBED, f'--config.dataset.path={images}', f'--workdir={workdir}')
    for number in sample:
        moment = moments(workdir, log)[number]
        processes = spawn(*arguments, log=log, recorded=recorded)
        with ended(processes):
            came = kill_when(moment, processes)
        assert came, f'the run ended before moment {number}: {log.read_text()}'
    output = finish(*arguments, log=log, recorded=recorded)
    assert f'finished at step {STEPS}' in output
    assert (parameters(workdir), losses(workdir)) == undisturbed
    check_exactly_once(recorded)
    assert sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir()) == [44, 48]


@pytest.mark.slow
def test_sigkills_of_a_run_with_worker_processes_leave_its_parameters_and_no_process(
    undisturbed, images, tmp_path
):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*PROBED, f'--config.dataset.path={images}', f'--workdir={workdir}')
    arguments = (*arguments, '--config.dataset.workers=2')
    for step in (2, 10, 22):
        processes = spawn(*arguments, log=log)
        with ended(processes):
            assert kill_when(lambda s=step: last_step(workdir) >= s, processes), log.read_text()
    finish(*arguments, log=log)
    assert (parameters(workdir), losses(workdir)) == undisturbed
    assert not subprocess.run(['pgrep', '-f', str(tmp_path)], capture_output=True).stdout


@pytest.mark.slow
def test_a_stop_by_sigterm_goes_on_to_the_same_parameters(undisturbed, images, tmp_path):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*PROBED, f'--config.dataset.path={images}', f'--workdir={workdir}')
    processes = spawn(*arguments, log=log)
    with ended(processes):
        assert wait_until(lambda: last_step(workdir) >= 7, processes)
        processes[0].send_signal(signal.SIGTERM)
        assert processes[0].wait(60) == 75, log.read_text()
    finish(*arguments, log=log)
    assert (parameters(workdir), losses(workdir)) == undisturbed


@pytest.mark.slow
def test_a_notice_of_maintenance_saves_and_stops(images, tmp_path):
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*RUN, '--config.num_steps=100000', f'--config.dataset.path={images}')
    with metadata_server() as (address, answers, _):
        processes = spawn(*arguments, f'--workdir={workdir}', log=log, GCE_METADATA_IP=address)
        with ended(processes):
            assert wait_until(lambda: last_step(workdir) >= 2, processes)
            answers['maintenance-event'] = 'TERMINATE_ON_HOST_MAINTENANCE'
            assert processes[0].wait(60) == 75, log.read_text()
    printed = log.read_text()
    assert 'this machine is about to be taken away' in printed and 'and saved' in printed
