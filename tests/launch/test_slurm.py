"""slurm.sbatch: its directives, the step that it runs, and when it requeues the job.

`srun` and `scontrol` are small stand-ins on the PATH that end as a test needs.
"""

import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from helpers.launchers import LAUNCH, run, stand_in, start, wait_for


def test_a_dry_run_of_slurm_prints_the_step_and_the_requeueing():
    done = run(
        'slurm.sbatch', '--config=a.py', '--workdir=my runs',
        DRY_RUN='1', SLURM_JOB_ID='7', SLURM_CPUS_PER_TASK='4',
    )  # fmt: skip
    step, requeue = done.stdout.splitlines()
    task = 'trap : TERM; "$@"; s=$?; if [[ $s == [13] ]]; then touch "$0"; fi; exit "$s"'
    assert shlex.split(step) == [
        *('srun', '--cpus-per-task=4', '--kill-on-bad-exit=0', '--wait=600'),
        *('bash', '-c', task, f'{Path.cwd()}/.final-7-0'),
        *('python', 'main.py', '--config=a.py', '--workdir=my runs'),
    ]
    assert requeue == 'scontrol requeue 7 # where that ended with 75, 76, or 128 and above'


@pytest.mark.parametrize(
    'status, requeued', [(0, False), (1, False), (3, False), (75, True), (76, True), (137, True)]
)
def test_a_slurm_job_is_requeued_where_it_can_go_on(tmp_path, status, requeued):
    stand_in(tmp_path / 'srun', f'exit {status}')
    stand_in(tmp_path / 'scontrol', 'echo "scontrol $*"')
    path = f'{tmp_path}:{os.environ["PATH"]}'
    done = run('slurm.sbatch', PATH=path, SLURM_JOB_ID='7')
    assert done.stdout == ('scontrol requeue 7\n' if requeued else '')
    assert requeued or done.returncode == status


@pytest.mark.parametrize('status, requeued', [(1, False), (3, False), (76, True)])
def test_what_one_process_of_several_ends_with_decides(tmp_path, status, requeued):
    """srun runs the task as Slurm would, and returns the highest status: that of those it ended."""
    stand_in(tmp_path / 'srun', 'while [[ $1 == -* ]]; do shift; done; "$@" || true; exit 134')
    stand_in(tmp_path / 'scontrol', 'echo "scontrol $*"')
    stand_in(tmp_path / 'python', f'exit {status}')
    path = f'{tmp_path}:{os.environ["PATH"]}'
    done = run('slurm.sbatch', PATH=path, SLURM_JOB_ID=f'{os.getpid()}')
    assert done.stdout == (f'scontrol requeue {os.getpid()}\n' if requeued else '')
    assert not list(Path.cwd().glob(f'.final-{os.getpid()}-*'))


def test_requeueing_is_bounded_where_processes_are_lost_and_not_at_the_time_limit(tmp_path):
    stand_in(tmp_path / 'scontrol', 'echo requeued')
    path = f'{tmp_path}:{os.environ["PATH"]}'
    done = {}
    for status in (76, 75):
        stand_in(tmp_path / 'srun', f'exit {status}')
        done[status] = run('slurm.sbatch', PATH=path, RESTARTS='5', SLURM_RESTART_COUNT='5')
    assert done[76].returncode == 76 and 'given up' in done[76].stderr
    assert done[75].stdout == 'requeued\n'


def test_a_job_that_slurm_itself_ends_is_saved_and_not_requeued(tmp_path):
    """`scancel` and preemption tell the batch script too, a near time limit the step alone."""
    stand_in(tmp_path / 'srun', 'touch ready; sleep .5; touch saved; exit 75')
    stand_in(tmp_path / 'scontrol', 'touch requeued')
    process = start('slurm.sbatch', PATH=f'{tmp_path}:{os.environ["PATH"]}')
    wait_for(tmp_path / 'ready')
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert (tmp_path / 'saved').exists() and not (tmp_path / 'requeued').exists()


SBATCH_OPTIONS = {  # sbatch(1)
    'job-name': r'\S+',
    'nodes': r'\d+(-\d+)?',
    'ntasks-per-node': r'\d+',
    'gpus-per-node': r'([\w.-]+:)?\d+',
    'cpus-per-task': r'\d+',
    'mem': r'\d+[KMGT]?',
    'time': r'(\d+-)?\d+(:\d\d){0,2}',
    'signal': r'([RB]:)*[A-Z0-9]+(@\d{1,5})?',
    'requeue': None,
    'open-mode': r'append|truncate',
    'output': r'(\S|%[%AajNnstux])+',
}


def test_the_directives_are_ones_that_sbatch_knows_with_values_it_takes():
    lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
    commands = [i for i, line in enumerate(lines) if line and not line.startswith('#')]
    given = {}
    for i, line in enumerate(lines):
        if line.startswith('#SBATCH'):
            assert i < commands[0], f'sbatch reads no directive after the first command: {line}'
            option, _, value = line.removeprefix('#SBATCH --').partition('=')
            pattern = SBATCH_OPTIONS[option]
            assert value == '' if pattern is None else re.fullmatch(pattern, value), line
            assert option not in given
            given[option] = value
    assert given['ntasks-per-node'] == given['gpus-per-node']  # one process a GPU
    assert 'requeue' in given
    assert given['signal'].startswith('TERM@')  # no B: the processes get it, not the script
