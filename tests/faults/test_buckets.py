"""Runs whose work directory is in a bucket of a real server, killed and stopped."""

import re
import signal
import time
from itertools import count

import pytest
from helpers.bucket_server import BUCKET, bucket_server, failing_server
from helpers.faulty_runs import (
    RUN,
    STEPS,
    ended,
    finish,
    kill_when,
    lines,
    losses,
    make_greys,
    parameters,
    spawn,
    wait_until,
)

pytestmark = pytest.mark.slow

RUN = (*RUN, '--config.image_every_steps=16', '--config.eval_every_steps=16')
OURS = re.compile(
    r'step |mae_jax |\d|encoder|parameters|writing to|caution|  batch_size|compiling|resuming|'
    r'finished|reconstructions|best|last|model card|still |error|gs://bucket/run/.lock'
)
"""How lines of a run's own begin."""


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    return (*RUN, f'--config.dataset.path={make_greys(tmp_path_factory.mktemp("images"))}')


@pytest.fixture(scope='module')
def undisturbed(arguments, tmp_path_factory):
    """The work directory, on a disk, of a run that nothing happened to."""
    root = tmp_path_factory.mktemp('undisturbed')
    finish(*arguments, f'--workdir={root / "run"}', log=root / 'log')
    return root / 'run'


def run_arguments(arguments, url):
    return dict(STORAGE_EMULATOR_HOST=url), (*arguments, f'--workdir=gs://{BUCKET}/run')


def logged(log, step):
    """Whether the console shows that step."""
    return lambda: re.search(rf'^step +{step}/{STEPS} ', log.read_text(), re.MULTILINE)


def check_same(workdir, undisturbed):
    """The parameters to the bit, and each line of metrics.jsonl once, in the same order."""
    assert parameters(workdir) == parameters(undisturbed)
    assert losses(workdir) == losses(undisturbed)
    measured = [
        [(line['step'], line.get('eval/loss')) for line in lines(each)]
        for each in (workdir, undisturbed)
    ]
    assert measured[0] == measured[1]


def foreign(printed):
    return [line for line in printed.splitlines() if not OURS.match(line)]


def test_sigkills_leave_parameters_and_metrics_of_the_undisturbed_run(
    arguments, undisturbed, tmp_path
):
    log, workdir = tmp_path / 'log', tmp_path / 'buckets' / BUCKET / 'run'
    with bucket_server(tmp_path / 'buckets') as url:
        environment, run = run_arguments(arguments, url)
        for step, saved in ((6, 4), (19, 16), (33, 32)):
            processes = spawn(*run, log=log, **environment)
            with ended(processes):
                assert kill_when(logged(log, step), processes), log.read_text()
            assert {line['step'] for line in lines(workdir)} >= set(range(1, saved + 1))
        printed = finish(*run, log=log, **environment)
    assert 'resuming at step' in printed  # 28, where that of 32 was not complete
    assert len(foreign(printed)) < 10, foreign(printed)
    check_same(workdir, undisturbed)
    for name in ('config.json', 'parameters.txt', 'model_card.md', 'images/latest.png'):
        assert (workdir / name).stat().st_size > 0
    assert len(list(workdir.glob('events.*'))) == 4  # of four starts
    assert not (workdir / '.lock').exists()


def test_what_a_kill_leaves_of_the_first_save_is_no_checkpoint(arguments, undisturbed, tmp_path):
    log, workdir = tmp_path / 'log', tmp_path / 'buckets' / BUCKET / 'run'
    with bucket_server(tmp_path / 'buckets') as url:
        environment, run = run_arguments(arguments, url)
        processes = spawn(*run, log=log, **environment)
        with ended(processes):
            assert kill_when((workdir / 'checkpoints/4/commit_success.txt').exists, processes)
        for last in ('checksums.txt', 'commit_success.txt'):  # what is written at the end of a save
            for path in (workdir / 'checkpoints').glob(f'*/{last}'):
                path.unlink()
        printed = finish(*run, log=log, **environment)
    assert 'resuming' not in printed and 'damaged' not in printed
    assert parameters(workdir) == parameters(undisturbed)
    assert losses(workdir) == losses(undisturbed)


def test_sigterm_leaves_all_metrics_in_the_bucket_and_the_directory_free(
    arguments, undisturbed, tmp_path
):
    log, workdir = tmp_path / 'log', tmp_path / 'buckets' / BUCKET / 'run'
    with bucket_server(tmp_path / 'buckets') as url:
        environment, run = run_arguments(arguments, url)
        processes = spawn(*run, log=log, **environment)
        with ended(processes):
            assert wait_until(logged(log, 6), processes)
            processes[0].send_signal(signal.SIGTERM)
            assert processes[0].wait(100) == 75, log.read_text()
        last = int(re.search(r'stopped at step (\d+)', log.read_text())[1])
        assert [line['step'] for line in lines(workdir) if 'loss' in line] == [*range(1, last + 1)]
        assert not (workdir / '.lock').exists()
        finish(*run, log=log, **environment)
    check_same(workdir, undisturbed)


def test_a_service_that_is_busy_for_a_while_changes_nothing(arguments, undisturbed, tmp_path):
    log, workdir = tmp_path / 'log', tmp_path / 'buckets' / BUCKET / 'run'
    with failing_server(tmp_path / 'buckets') as server:
        environment, run = run_arguments(arguments, server.url)
        numbers = count()

        def sometimes(method, path):
            return (None, None, 429, 503)[next(numbers) % 4]

        processes = spawn(*run, log=log, **environment)
        with ended(processes):
            assert wait_until(logged(log, 5), processes)
            server.answer = sometimes
            time.sleep(5)
            server.answer = lambda method, path: 503
            time.sleep(3)
            server.answer = lambda method, path: None
            assert processes[0].wait(400) == 0, log.read_text()
    assert server.answered > 5
    assert 'Traceback' not in log.read_text() and len(foreign(log.read_text())) < 10
    check_same(workdir, undisturbed)


def test_a_second_run_in_the_directory_is_refused_and_names_the_first(arguments, tmp_path):
    log = tmp_path / 'log'
    with bucket_server(tmp_path / 'buckets') as url:
        environment, run = run_arguments(arguments, url)
        run = (*run, '--config.num_steps=100000')
        processes = spawn(*run, log=log, **environment)
        with ended(processes):
            assert wait_until(lambda: 'step      1/100000' in log.read_text(), processes)
            second = spawn(*run, log=tmp_path / 'second', **environment)
            with ended(second):
                assert second[0].wait(100) == 1
    assert (
        f'is held by another process (process {processes[0].pid}'
        in (tmp_path / 'second').read_text()
    )


def test_what_the_service_refuses_is_one_sentence(arguments, tmp_path):
    refusals = {
        'gs://missing/run': (None, 'gs://missing does not exist, or this account cannot see it'),
        f'gs://{BUCKET}/a': (403, 'may not be read or written by this account'),
        f'gs://{BUCKET}/b': (401, 'needs credentials'),
    }
    with failing_server(tmp_path / 'buckets') as server:
        for workdir, (status, message) in refusals.items():
            server.answer = lambda method, path, status=status: status
            environment = dict(STORAGE_EMULATOR_HOST=server.url)
            log = tmp_path / 'log'
            processes = spawn(*arguments, f'--workdir={workdir}', log=log, **environment)
            with ended(processes):
                assert processes[0].wait(100) == 1, log.read_text()
            printed = log.read_text()
            assert message in printed and 'Traceback' not in printed, printed
            assert len(foreign(printed)) == 0, printed


def test_two_processes_share_a_directory_in_a_bucket(arguments, undisturbed, tmp_path):
    log, workdir = tmp_path / 'log', tmp_path / 'buckets' / BUCKET / 'run'
    with bucket_server(tmp_path / 'buckets') as url:
        environment, run = run_arguments(arguments, url)
        printed = finish(*run, log=log, processes=2, **environment)
    assert f'finished at step {STEPS}' in printed
    assert losses(workdir) == pytest.approx(losses(undisturbed), rel=1e-4)
    assert len(list(workdir.glob('events.*'))) == 1
