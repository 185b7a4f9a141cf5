"""`mae-jax prepare`, as a user starts and stops it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ROOT
from PIL import Image

from mae_jax.cli import prepare
from mae_jax.cli.main import parse_arguments
from mae_jax.data.sources.make import make_source
from mae_jax.errors import UserError


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """48 photographs of 2 megapixels, which take seconds, and two small ones."""
    root = tmp_path_factory.mktemp('photos')
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    large = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC)
    for label in 'ab':
        for split, count, picture in (('train', 24, large), ('val', 1, large.resize((60, 40)))):
            (root / split / label).mkdir(parents=True)
            picture.save(root / split / label / '0.jpg')
            for i in range(1, count):
                os.link(root / split / label / '0.jpg', root / split / label / f'{i}.jpg')
    return root


def start(source, out, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, '-m', 'mae_jax', 'prepare', str(source), str(out), *arguments]
    return subprocess.Popen(
        [*command, '--shard_examples=4', '--workers=2'],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def begun(process, out) -> list[int]:
    """Waits until a shard is written and others are not; gives the processes it started."""
    deadline = time.monotonic() + 120
    while not list(out.glob('train-*.array_record')):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    assert len(children) >= 2
    return [int(child) for child in children]


def gone(pids) -> bool:
    """Whether these processes end within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(map(is_alive, pids)):
            return True
        time.sleep(0.05)
    return False


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    return False


def files(out):
    return {f.name: f.read_bytes() for f in out.iterdir() if f.name != '.lock'}


@pytest.fixture(scope='module')
def whole(photos, tmp_path_factory):
    """What is written where nobody stops it."""
    out = tmp_path_factory.mktemp('whole')
    process = start(photos, out)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert 'train: 48 images in 12 shards' in output and 'pixel difference, of 48 images' in output
    assert 'images/s' in errors  # the progress bar
    return files(out)


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_with_the_same_bytes(photos, whole, tmp_path):
    out = tmp_path / 'out'
    process = start(photos, out)
    workers = begun(process, out)
    process.kill()
    process.wait()
    assert gone(workers)
    shards = len(list(out.glob('train-*.array_record')))
    assert 1 <= shards < 12
    with pytest.raises(UserError, match='incomplete'):
        make_source('prepared', 'train', path=str(out))
    process = start(photos, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert files(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'group', 'status'),
    [(signal.SIGTERM, False, 143), (signal.SIGTERM, True, 143), (signal.SIGINT, True, 130)],
)
def test_stopped_it_leaves_nothing_behind(photos, tmp_path, number, group, status):
    out = tmp_path / 'out'
    process = start(photos, out)
    workers = begun(process, out)
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.endswith('stopped: run the same command to go on.\n')
    assert 'Traceback' not in errors
    assert gone(workers)


@pytest.mark.slow
def test_a_worker_that_dies_is_reported(photos, tmp_path):
    out = tmp_path / 'out'
    process = start(photos, out)
    workers = begun(process, out)
    os.kill(workers[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and gone(workers)
    assert 'A worker process ended with exit status -9' in errors.splitlines()[-1]


@pytest.mark.slow
def test_the_directory_is_held(photos, tmp_path):
    out = tmp_path / 'out'
    process = start(photos, out)
    try:
        begun(process, out)
        second = start(photos, out)
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 1 and f'another process ({process.pid})' in errors
    finally:
        process.kill()
        process.communicate()


def test_options_reach_the_work(photos, tmp_path, capsys):
    out = tmp_path / 'out'
    arguments = [
        *('prepare', str(photos), str(out), '--splits', 'val', '--short_side=16', '--quality=50'),
        *('--channels=1', '--shard_examples=1', '--workers=1', '--on_error=skip'),
    ]
    prepare.run(parse_arguments(arguments))
    output = capsys.readouterr().out
    assert "'short_side': 16, 'quality': 50, 'channels': 1" in output
    assert 'val: 2 images in 2 shards' in output
    with pytest.raises(UserError, match='--short_side was 16, now 256'):
        prepare.run(parse_arguments([*arguments, '--short_side=256']))
    prepare.run(parse_arguments([*arguments, '--short_side=256', '--overwrite']))
    assert len(make_source('prepared', 'val', path=str(out), channels=1)) == 2


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(['prepare', '--help'])
    assert 'mae-jax prepare imagenet2012' in capsys.readouterr().out
