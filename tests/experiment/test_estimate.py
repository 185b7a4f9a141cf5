"""The time that a run will take is printed after two steps, where that is long."""

from types import SimpleNamespace

import pytest

from mae_jax.experiment.estimate import duration, make_estimate
from mae_jax.training.loop import Hook


def lines(seconds_a_step, num_steps, **config):
    config = {'task': 'pretrain', 'max_images_seen': None} | config
    length = SimpleNamespace(num_steps=num_steps, steps_per_epoch=10)
    setup = SimpleNamespace(config=config_of(config), length=length)
    printed, now = [], [0.0]
    finished = make_estimate(setup, printed.append, lambda: now[0])
    now[0] = 60.0  # the first step compiles
    for step in range(1, 5):
        finished(step)
        now[0] += seconds_a_step
    return printed


def config_of(fields):
    return SimpleNamespace(**fields, get=fields.get)


def test_a_long_pretraining_names_the_config_for_laptops():
    (line,) = lines(10.0, 1802)
    assert line == 'about 5 h on this machine; configs/folder.py:laptop takes about 10 min'
    assert len(line) <= 80


def test_the_config_for_laptops_does_not_name_itself():
    assert lines(10.0, 1802, max_images_seen=1000) == ['about 5 h on this machine']


def test_a_long_classification_names_a_shorter_one():
    (line,) = lines(10.0, 1802, task='classify')
    assert line == 'about 5 h on this machine; --config.num_epochs=9 takes about 15 min'


def test_a_short_run_says_nothing():
    assert lines(1.0, 1000) == []


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(10, '1 min'), (2400, '40 min'), (18_000, '5 h'), (200_000, '56 h'), (864_000, '10 days')],
)
def test_durations_are_rough(seconds, text):
    assert duration(seconds) == text.replace('56 h', '2 days')


def due_steps(last, **fields):
    hook = Hook(run=lambda step, state: {}, **fields)
    return [step for step in range(1, last + 1) if hook.due(step, last)]


def test_a_hook_is_due_early_and_at_the_end_whatever_its_interval():
    assert due_steps(100, every_steps=1000, early=True) == [10, 100]
    assert due_steps(100, every_steps=1000) == [100]
    assert due_steps(100, every_steps=40, early=True) == [10, 40, 80, 100]
    assert due_steps(100, every_steps=7, early=True) == [*range(7, 99, 7), 100]
    assert due_steps(6, every_steps=4, early=True) == [4, 6]
