"""A run that prints nothing for a while speaks up, and its metrics do not depend on that."""

import io
import time

import pytest

from mae_jax.training import metrics
from mae_jax.training.heartbeat import heartbeat


def test_it_slows_down_and_ends():
    times, start = [], time.monotonic()
    with heartbeat(lambda: times.append(time.monotonic() - start), 0.1, 0.4) as printed:
        deadline = start + 30
        while len(times) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert times[0] >= 0.1 and times[1] - times[0] >= 0.2 and times[2] - times[1] >= 0.4
        printed()
    count = len(times)
    time.sleep(0.5)
    assert len(times) == count


def test_it_is_silent_while_the_run_prints():
    times = []
    with heartbeat(lambda: times.append(0), 5.0) as printed:
        for _ in range(20):
            printed()
            time.sleep(0.005)
    assert times == []


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(metrics, 'heartbeat', lambda speak: heartbeat(speak, 0.05, 30.0))


def test_a_silent_run_prints_its_last_step_and_writes_no_metrics(tmp_path, impatient):
    console = io.StringIO()
    options = dict(start_step=0, total_steps=100, steps_per_epoch=10, console=console)
    with metrics.MetricsWriter(tmp_path, **options) as writer:
        deadline = time.monotonic() + 30
        while not console.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        writer.progress(7, {'loss': 0.5})
        writer._break_silence()
        writer._break_silence()
    assert console.getvalue().splitlines() == [
        'still compiling, or in the first step',
        'step   7/100  epoch 0.7  loss 0.5000',
        'still at work after step 7',
    ]
    assert (tmp_path / 'metrics.jsonl').read_text() == ''
