"""local.sh: what it would run, and what it does about lost processes and signals.

The processes are small stand-ins for `python` that answer and end as a test needs.
"""

import re
import signal
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT, TINY
from helpers.launchers import run, stand_in, start, wait_for


def test_a_dry_run_of_local_prints_one_command_a_process():
    done = run('local.sh', '2', '--config=a.py', '--workdir=my runs', DRY_RUN='1', PORT='12345')
    common = (
        'JAX_COORDINATOR_ADDRESS=127.0.0.1:12345 JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:12345 '
        'JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={} '
        'python {}/main.py --config=a.py --workdir=my\\ runs\n'
    )
    assert done.stdout == common.format(0, ROOT) + common.format(1, ROOT)
    assert done.returncode == 0


def test_gpus_are_shared_out_evenly():
    gpus = dict(DRY_RUN='1', JAX_PLATFORMS='cuda', CUDA_VISIBLE_DEVICES='4,5,6,7')
    done = run('local.sh', '2', **gpus)
    assert re.findall('JAX_LOCAL_DEVICE_IDS=([0-9,]+)', done.stdout) == ['0,1', '2,3']
    done = run('local.sh', '3', **gpus)
    assert done.returncode == 1 and '4 GPUs cannot be shared evenly by 3 processes' in done.stderr


def test_output_of_process_0_is_plain_and_that_of_others_begins_with_their_number(tmp_path):
    python = stand_in(
        tmp_path / 'python', 'echo "out $JAX_PROCESS_ID $2"; echo "err $JAX_PROCESS_ID" >&2'
    )
    done = run('local.sh', '3', '--a=b c', PYTHON=python)
    assert done.stdout == 'out 0 --a=b c\n'
    assert sorted(done.stderr.splitlines()) == [
        '[1] err 1', '[1] out 1 --a=b c', '[2] err 2', '[2] out 2 --a=b c', 'err 0',
    ]  # fmt: skip
    assert done.returncode == 0


def test_all_start_again_on_a_new_port_where_one_was_lost(tmp_path):
    python = stand_in(
        tmp_path / 'python',
        'echo "$JAX_COORDINATOR_ADDRESS" >> addresses.$JAX_PROCESS_ID\n'
        '[[ $(wc -l < addresses.$JAX_PROCESS_ID) == 3 ]] && exit 0\n'
        'case $JAX_PROCESS_ID in 0) exit 76 ;; 1) kill -KILL $$ ;; esac\n',
    )
    done = run('local.sh', '2', PYTHON=python)
    assert done.returncode == 0
    assert 'restart 2 of 3' in done.stderr and 'restart 3' not in done.stderr
    addresses = [(tmp_path / f'addresses.{i}').read_text().split() for i in range(2)]
    assert addresses[0] == addresses[1] and len(set(addresses[0])) == 3


def test_restarts_are_bounded(tmp_path):
    done = run('local.sh', '2', RESTARTS='1', PYTHON=stand_in(tmp_path / 'python', 'kill -KILL $$'))
    assert done.returncode == 137
    assert 'restart 1 of 1' in done.stderr and 'after 1 restarts: given up' in done.stderr


@pytest.mark.parametrize('status', [1, 3, 75, 2])
def test_a_status_that_calls_for_no_restart_is_passed_on(tmp_path, status):
    """Although the other process ends later with 76, since it lost its peer."""
    python = stand_in(
        tmp_path / 'python', f'((JAX_PROCESS_ID)) && exit {status}; sleep .3; exit 76'
    )
    done = run('local.sh', '2', PYTHON=python)
    assert done.returncode == status and 'restart' not in done.stderr


def test_a_mistake_counts_more_than_that_its_process_was_lost_to_others(tmp_path):
    python = stand_in(tmp_path / 'python', '((JAX_PROCESS_ID)) && exit 76; sleep .3; exit 3')
    assert run('local.sh', '2', PYTHON=python).returncode == 3


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_to_every_process_and_no_restart_follows(tmp_path, sent):
    python = stand_in(
        tmp_path / 'python',
        'trap "echo stop >> stop.$JAX_PROCESS_ID" TERM\n'
        'touch ready.$JAX_PROCESS_ID\n'
        'until [[ -e stop.$JAX_PROCESS_ID ]]; do sleep .1; done\n'
        'sleep .2; touch saved.$JAX_PROCESS_ID; exit $((76 + 67 * JAX_PROCESS_ID))\n',
    )
    process = start('local.sh', '2', PYTHON=python)
    wait_for(tmp_path / 'ready.0', tmp_path / 'ready.1')
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75 and 'stopping' in err and 'restart' not in err
    for i in range(2):
        assert (tmp_path / f'saved.{i}').exists()
        assert (tmp_path / f'stop.{i}').read_text() == 'stop\n'


def test_no_process_survives(tmp_path):
    """Neither one that waits for a lost one for ever, nor what a process started itself."""
    python = stand_in(
        tmp_path / 'python',
        'sleep 1000 & echo $! >> pids; echo $$ >> pids\n'
        '((JAX_PROCESS_ID)) || kill -KILL $$\n'
        'trap "" TERM; while :; do sleep 1; done\n',
    )
    done = run('local.sh', '2', PYTHON=python, RESTARTS='0', GRACE='0')
    pids = (tmp_path / 'pids').read_text().split()
    assert done.returncode == 137 and len(pids) == 4
    assert [pid for pid in pids if alive(pid)] == []


def alive(pid: str) -> bool:
    try:
        return Path('/proc', pid, 'stat').read_text().split()[2] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_processes_of_this_machine_train_to_the_end(tmp_path):
    done = run(
        'local.sh', '2', *(flag.replace('configs/', f'{ROOT}/configs/') for flag in TINY),
        f'--workdir={tmp_path}/run', PYTHON=sys.executable, PYTHONPATH=str(ROOT), XLA_FLAGS='',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run' / 'checkpoints' / '8').is_dir()
    assert 'restart' not in done.stderr
