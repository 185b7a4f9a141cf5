"""Real runs, really killed: what they end with is what the undisturbed run ends with."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from commands import TINY, start

from mae_jax.checkpoint import restore_weights
from mae_jax.find_checkpoint import locate

RUN = (*TINY, '--config.num_steps=40', '--config.checkpoint_every_steps=4', '--config.keep_last=2')


def last_logged(workdir) -> int:
    """The last step in metrics.jsonl: what the run has reached."""
    try:
        lines = (workdir / 'metrics.jsonl').read_text().splitlines()
        return max(int(line.partition('"step": ')[2].partition(',')[0]) for line in lines)
    except (OSError, ValueError):
        return 0


def saving(workdir) -> bool:
    return any('tmp' in path.name for path in (workdir / 'checkpoints').glob('*'))


def kill_when(reached, arguments) -> bool:
    """Starts the run and SIGKILLs its process group as soon as `reached()`; False: it finished."""
    process = start(*arguments, start_new_session=True)
    deadline = time.monotonic() + 240
    while process.poll() is None and not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    alive = process.poll() is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)  # its workers must notice by themselves
    process.communicate()
    assert alive or process.returncode == 0
    return alive


def finish(arguments) -> str:
    process = start(*arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def parameters(workdir) -> dict[str, bytes]:
    params, _, step, _ = restore_weights(*locate(workdir))
    assert step == 40
    flat = {}

    def add(prefix, tree):
        for name, value in tree.items():
            if isinstance(value, dict):
                add(f'{prefix}{name}/', value)
            else:
                flat[prefix + name] = np.asarray(value).tobytes()

    add('', params)
    return flat


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('undisturbed')
    finish((*RUN, f'--workdir={workdir}'))
    return parameters(workdir)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_five_sigkills_leave_the_parameters_of_the_undisturbed_run(undisturbed, tmp_path, workers):
    arguments = (*RUN, f'--workdir={tmp_path}', f'--config.dataset.workers={workers}')
    moments = [
        lambda: (tmp_path / 'config.json').exists(),  # before the first step
        lambda: last_logged(tmp_path) >= 2,  # before the first checkpoint
        lambda: last_logged(tmp_path) >= 10 and saving(tmp_path),  # while one is being written
        lambda: last_logged(tmp_path) >= 22,
        lambda: last_logged(tmp_path) >= 34 and saving(tmp_path),
    ]
    killed = [kill_when(moment, arguments) for moment in moments]
    assert all(killed)
    output = finish(arguments)
    assert 'resuming at step' in output
    assert parameters(tmp_path) == undisturbed
    steps = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir()]
    assert sorted(steps) == [36, 40]
    logged = [
        line for line in (tmp_path / 'metrics.jsonl').read_text().splitlines() if '"loss"' in line
    ]
    assert len(logged) == 20  # every second step stands once
    assert not subprocess.run(['pgrep', '-f', str(tmp_path)], capture_output=True).stdout


@pytest.mark.slow
def test_a_stop_by_sigterm_goes_on_to_the_same_parameters(undisturbed, tmp_path):
    arguments = (*RUN, f'--workdir={tmp_path}')
    process = start(*arguments)
    while last_logged(tmp_path) < 7:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    finish(arguments)
    assert parameters(tmp_path) == undisturbed
