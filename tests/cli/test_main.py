"""`main.py`, as a user starts and stops it."""

import json
import os
import signal
import time

import numpy as np
import pytest
from helpers.commands import TINY, start
from helpers.drawings import cells_of
from PIL import Image

from mae_jax.errors import EXIT_PREEMPTED, EXIT_USER_ERROR


def test_a_run_trains_and_writes_everything(command, tmp_path):
    workdir = f'--workdir={tmp_path}'
    status, output = command(*TINY, workdir)
    assert status == 0, output
    assert 'parameters' in output and 'finished at step 8 of 8' in output
    assert 'step 8/8  epoch 0.1  loss ' in output
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines if 'loss' in line] == [2, 4, 6, 8]
    assert [line['step'] for line in lines if 'eval/loss' in line] == [4, 8]
    for name in ('grad_norm', 'update_norm', 'param_norm', 'learning_rate', 'images_per_second'):
        assert name in lines[-2], name
    picture = np.asarray(Image.open(tmp_path / 'images' / 'latest.png'))
    assert cells_of(picture, 2, 6, 8, 8).shape == (6, 2, 8, 8, 3)  # four images, two in a row
    assert list(tmp_path.glob('events.out.tfevents.*'))
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['4', '6', '8']


@pytest.mark.slow
def test_a_finished_run_stops_and_is_evaluated(command, tmp_path):
    workdir = f'--workdir={tmp_path}'
    status, output = command(*TINY, workdir)
    assert status == 0, output
    before = (tmp_path / 'metrics.jsonl').read_text()
    status, output = command(*TINY, workdir)
    assert status == 0
    assert 'resuming at step 8 of 8' in output and 'finished at step 8 of 8' in output
    assert (tmp_path / 'metrics.jsonl').read_text() == before

    status, output = command(*TINY, workdir, '--config.mode=eval')
    assert status == 0
    lines = map(json.loads, before.splitlines())
    held_out = [line['eval/loss'] for line in lines if 'eval/loss' in line][-1]
    assert f'32 held-out images: loss {held_out:.4f}' in output


def test_a_mistake_is_one_sentence_without_a_traceback(command, tmp_path):
    status, output = command(*TINY, '--config.batch_size=0', f'--workdir={tmp_path}')
    assert status == EXIT_USER_ERROR
    first, error = output.splitlines()
    assert first.endswith(f': configs/quickstart.py in {tmp_path}')
    assert error.startswith('error: ') and 'batch_size=0' in error


def test_verbose_shows_the_traceback(command, tmp_path):
    status, output = command(*TINY, '--config.batch_size=0', f'--workdir={tmp_path}', '--verbose')
    assert status == EXIT_USER_ERROR
    assert 'Traceback' in output and 'batch_size=0' in output


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_its_own_status_and_a_second_run_is_refused(command, tmp_path):
    arguments = (*TINY, '--config.num_steps=100000', '--config.checkpoint_every_steps=50000')
    process = start(*arguments, f'--workdir={tmp_path}')
    try:
        metrics = tmp_path / 'metrics.jsonl'
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        status, output = command(*arguments, f'--workdir={tmp_path}')
        assert status == EXIT_USER_ERROR
        assert f'held by another process ({process.pid})' in output
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == EXIT_PREEMPTED, output
    assert 'run the same command to go on' in output and 'Traceback' not in output
    (saved,) = os.listdir(tmp_path / 'checkpoints')
    assert f'stopped at step {saved} and saved' in output
