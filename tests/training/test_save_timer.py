"""A run is saved when so many minutes have passed, whatever the pace of its steps."""

import jax
import numpy as np
import pytest

from mae_jax.training.loop import Intervals, Recorder, Saver, train
from mae_jax.training.save_timer import LOOKS, SaveTimer
from mae_jax.training.state import TrainState
from mae_jax.training.throughput import Throughput


class Clock:
    """Seconds that pass as a test says."""

    def __init__(self):
        self.now, self.looks = 0.0, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


def saves(minutes, seconds_per_step, first=0):
    """Returns (steps after which the run is saved, looks at the clock)."""
    clock, saved = Clock(), []
    timer = SaveTimer(minutes, first, clock)
    for step, seconds in enumerate(seconds_per_step, first + 1):
        clock.now += seconds
        if timer.due(step):
            saved.append(step)
            timer.saved(step)
    return saved, clock.looks


@pytest.mark.parametrize('first', [0, 1000])
def test_steps_of_any_length_are_saved_when_the_time_has_come(first):
    assert saves(15, [90.0] * 25, first)[0] == [first + 10, first + 20]
    assert saves(15, [1200.0] * 3, first)[0] == [first + 1, first + 2, first + 3]
    assert saves(1, [0.5] * 250, first)[0] == [first + 120, first + 240]


def test_zero_minutes_never_save():
    assert saves(0, [1e6] * 3)[0] == []


def test_a_save_of_another_cause_starts_the_interval_again():
    clock = Clock()
    timer = SaveTimer(1, 0, clock)
    for step in range(1, 200):
        clock.now += 1
        assert timer.due(step) == (step == 110)
        if step in (50, 110):
            timer.saved(step)
        if step == 120:
            return


def test_fast_steps_are_not_slowed_by_looks_at_the_clock():
    saved, looks = saves(15, [0.125] * 7300)
    assert saved == [7200] and looks < 4 * LOOKS


def test_a_pace_that_drops_delays_a_save_by_a_part_of_the_interval():
    (saved, *_), _ = saves(15, [1.0] * 300 + [5.0] * 400)
    assert 300 + 120 <= saved < 300 + 120 + 60  # due after 420 steps; 56 s at the old pace


class Batches:
    """Batches of nothing, always ready."""

    def __next__(self):
        return {}

    def ready(self):
        return True


def test_the_loop_saves_once_a_step_for_every_reason_there_is():
    def step(state, batch):
        return state.replace(step=state.step + 1), {'loss': np.float32(1), 'grad_norm': 1.0}

    asked, saved = [], []

    def due(step):
        asked.append(step)
        return step in (2, 4, 7)

    throughput = Throughput(
        batch_size=1, flops_per_image=1.0, devices=jax.devices()[:1], total_steps=9
    )
    train(
        TrainState(step=np.int32(0), params={}, model_state={}, opt_state=()),
        step,
        Batches(),
        Intervals(9, log=1, checkpoint=4),
        recorder=Recorder(throughput, lambda step, scalars: None),
        saver=Saver(lambda step, state, metrics: saved.append((step, int(state.step))), due=due),
    )
    assert saved == [(step, step) for step in (2, 4, 7, 8, 9)]
    assert {1, 2, 3, 5, 6, 7} <= set(asked)
