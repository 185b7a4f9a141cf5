"""Estimates after two steps how long a run will take, where that is long for its machine."""

import time
from collections.abc import Callable

import jax

from mae_jax.experiment.setup import Setup

LONG_S = 1800
"""Seconds from which a run on a CPU is announced as long."""
SHORT_S = 900
"""Seconds of the shorter classification run that the line proposes."""
LAPTOP = 'configs/folder.py:laptop takes about 10 min'


def make_estimate(
    setup: Setup, say: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
) -> Callable[[int], None]:
    """Makes the function that is called with every finished step and says one line at most.

    The first step of a start includes compilation; the time of the second is that of all.
    """
    ends: list[float] = []

    def finished(step: int) -> None:
        if len(ends) == 2 or jax.default_backend() != 'cpu':
            return
        ends.append(clock())
        if len(ends) == 2 and (line := estimate(setup, ends[1] - ends[0], step)):
            say(line)

    return finished


def estimate(setup: Setup, step_s: float, step: int) -> str | None:
    """Returns 'about 5 h on this machine; ... takes about 10 min'; None for a short run.

    Args:
      step_s: seconds of a step.
      step: the last finished one.
    """
    config, left_s = setup.config, step_s * (setup.length.num_steps - step)
    if left_s < LONG_S:
        return None
    line = f'about {duration(left_s)} on this machine'
    if config.task == 'pretrain' and not config.get('max_images_seen'):
        return f'{line}; {LAPTOP}'
    epochs = int(SHORT_S / (step_s * setup.length.steps_per_epoch))
    if config.task == 'classify' and epochs:
        return f'{line}; --config.num_epochs={epochs} takes about {duration(SHORT_S)}'
    return line


def duration(seconds: float) -> str:
    """Formats a duration roughly: '40 min', '5 h', '3 days'."""
    if seconds < 5400:
        return f'{max(round(seconds / 60), 1)} min'
    hours = seconds / 3600
    return f'{hours:.0f} h' if hours < 48 else f'{hours / 24:,.0f} days'
