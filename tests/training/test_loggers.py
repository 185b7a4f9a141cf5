"""Loggers: opened late, unable to end a run, and going on with a run that is resumed."""

import glob
import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import ROOT, make_tiny_config

from mae_jax.errors import UserError
from mae_jax.training.loggers import LOGGERS
from mae_jax.training.metrics import MetricsWriter

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
STARTS = """
import io, sys
import numpy as np
from helpers.commands import make_tiny_config
from mae_jax.training.metrics import MetricsWriter
for start in (0, 2):
    writer = MetricsWriter(sys.argv[1], start_step=start, total_steps=9, steps_per_epoch=3,
                           loggers=(sys.argv[2],), config=make_tiny_config())
    with writer:
        for step in range(start + 1, start + 4):
            writer.scalars(step, {'loss': 1.0 / step, 'mfu': 0.5})
        writer.image(start + 3, 'reconstruction', np.zeros((20, 30, 3), np.uint8))
"""
"""Two starts of a run; the second does step 3 again."""


class Recording:
    """Keeps what it gets, and raises at `fails_at`."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __call__(self, workdir, start_step, config):
        self._do('open')
        return self

    def _do(self, *call):
        self.calls.append(call)
        if call[0] == self.fails_at:
            raise RuntimeError('the service is gone')

    def scalars(self, step, values):
        self._do('scalars', step)

    def image(self, step, name, pixels):
        self._do('image', step)

    def close(self):
        self._do('close')


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Logs two lines and a picture with loggers of these names: -> what the console shows."""

    def write(**loggers):
        monkeypatch.setattr(LOGGERS, '_entries', LOGGERS._entries | loggers)
        console = io.StringIO()
        options = dict(start_step=0, total_steps=9, steps_per_epoch=3, console=console)
        with MetricsWriter(tmp_path, loggers=tuple(loggers), **options) as writer:
            assert not any(logger.calls for logger in loggers.values())
            writer.scalars(1, {'loss': 1.0})
            writer.image(1, 'reconstruction', PICTURE)
            writer.scalars(2, {'loss': 0.5})
        return console.getvalue()

    return write


def test_a_logger_is_opened_when_there_is_something_to_log(write):
    logger = Recording()
    write(mine=logger)
    assert logger.calls == [('open',), ('scalars', 1), ('image', 1), ('scalars', 2), ('close',)]


def test_nothing_is_opened_by_a_run_that_logs_nothing(tmp_path, monkeypatch):
    logger = Recording()
    monkeypatch.setattr(LOGGERS, '_entries', LOGGERS._entries | {'mine': logger})
    options = dict(start_step=0, total_steps=9, steps_per_epoch=3, console=io.StringIO())
    MetricsWriter(tmp_path, loggers=('mine', 'tensorboard'), **options).close()
    assert logger.calls == [] and not list(tmp_path.glob('events*'))


@pytest.mark.parametrize('fails_at', ['open', 'scalars', 'image', 'close'])
def test_a_logger_that_fails_is_reported_once_and_the_run_goes_on(fails_at, write, tmp_path):
    failing, other = Recording(fails_at), Recording()
    console = write(failing=failing, other=other)
    assert console.count("logger 'failing' failed and gets nothing more (the service is gone)") == 1
    assert failing.calls[-1][0] == fails_at and len(other.calls) == 5
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['loss'] for line in lines] == [1.0, 0.5]


def test_a_logger_whose_package_is_missing_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"loggers='wandb' needs wandb: pip install 'mae_jax"):
        MetricsWriter(tmp_path, start_step=0, total_steps=9, steps_per_epoch=3, loggers=('wandb',))


def run_twice(tmp_path, logger, **environment):
    """Runs `STARTS` in a process: -> the lines that it printed."""
    done = subprocess.run(
        [sys.executable, '-c', STARTS, tmp_path / 'digits', logger],
        env=environment | {'PYTHONPATH': f'{ROOT}:{ROOT}/tests', 'HOME': str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wandb_offline_keeps_one_run_over_two_starts(tmp_path):
    pytest.importorskip('wandb')
    printed = run_twice(tmp_path, 'wandb', WANDB_MODE='offline')
    assert 'failed' not in printed
    identifier = (tmp_path / 'digits/wandb/run_id').read_text().strip()
    folders = glob.glob(f'{tmp_path}/digits/wandb/offline-run-*')
    assert folders and all(folder.endswith(f'-{identifier}') for folder in folders)
    content = b''.join(
        path.read_bytes() for path in (tmp_path / 'digits/wandb').rglob('run-*.wandb')
    )
    for name in (b'train/optimizer', b'speed/mfu', b'eval/reconstruction', b'base_lr'):
        assert name in content


@pytest.mark.slow
def test_wandb_without_a_key_never_asks_and_never_ends_the_run(tmp_path):
    pytest.importorskip('wandb')
    printed = run_twice(tmp_path, 'wandb')
    assert printed.count("the logger 'wandb' failed") == 2  # once a start
    assert 'WANDB_MODE=offline' in printed
    assert len((tmp_path / 'digits/metrics.jsonl').read_text().splitlines()) == 5


@pytest.mark.slow
def test_mlflow_keeps_one_run_over_two_starts(tmp_path):
    mlflow = pytest.importorskip('mlflow')
    address = f'sqlite:///{tmp_path}/mlflow.db'
    printed = run_twice(tmp_path, 'mlflow', MLFLOW_TRACKING_URI=address)
    assert 'failed' not in printed
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name('mae_jax')
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == 'digits' and run.info.status == 'FINISHED'
    width = make_tiny_config().model.width
    assert run.data.params['model.width'] == str(width)
    history = client.get_metric_history(run.info.run_id, 'loss')
    assert {m.step: m.value for m in history} == {s: pytest.approx(1 / s) for s in range(1, 6)}


@pytest.mark.slow
def test_mlflow_without_a_server_never_ends_the_run(tmp_path):
    pytest.importorskip('mlflow')
    address = {'MLFLOW_TRACKING_URI': 'http://127.0.0.1:9', 'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '0'}
    printed = run_twice(tmp_path, 'mlflow', **address)
    assert printed.count("the logger 'mlflow' failed") == 2
    assert len((tmp_path / 'digits/metrics.jsonl').read_text().splitlines()) == 5
