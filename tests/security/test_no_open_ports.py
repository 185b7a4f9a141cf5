"""A run of one process opens no port."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import commands
from helpers.tiny_runs import make_image_folder


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_of_one_process_listens_nowhere(workers, tmp_path):
    images = make_image_folder(tmp_path / 'images', '', count=64)
    arguments = [a for a in commands.TINY if 'eval_examples' not in a]
    run = commands.start(
        *arguments,
        '--config.dataset.name=folder',
        f'--config.dataset.path={images}',
        f'--config.dataset.workers={workers}',
        '--config.num_steps=40',
        f'--workdir={tmp_path / "run"}',
    )
    looks, most = 0, 0
    try:
        while run.poll() is None:
            family = descendants(run.pid)
            most = max(most, len(family))
            assert listening(family) == []
            looks += 1
            time.sleep(0.05)
    finally:
        run.kill()
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert looks > 20 and most >= 1 + workers


def test_a_socket_that_listens_would_be_seen():
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(1, flush=True); "
        'import sys; sys.stdin.read()'
    )
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-c', code], **options) as child:
        assert child.stdout.readline()
        assert len(listening(descendants(child.pid))) == 1
        child.stdin.close()


def descendants(pid: int) -> list[int]:
    """Lists a process and its descendants."""
    family = [pid]
    for parent in family:
        for tasks in Path(f'/proc/{parent}/task').glob('*/children'):
            try:
                family += [int(child) for child in tasks.read_text().split()]
            except OSError:  # it has ended
                continue
    return family


def listening(pids: list[int]) -> list[str]:
    """Lists the local addresses of listening TCP and bound UDP sockets of the processes."""
    held = set()
    for pid in pids:
        for descriptor in Path(f'/proc/{pid}/fd').glob('*'):
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith('socket:['):
                held.add(target[8:-1])
    addresses = []
    for table, states in (('tcp', '0A'), ('tcp6', '0A'), ('udp', '07'), ('udp6', '07')):
        try:
            lines = Path(f'/proc/{pids[0]}/net/{table}').read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == states and fields[9] in held:
                addresses.append(f'{table} {fields[1]}')
    return addresses
