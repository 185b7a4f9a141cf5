"""Decides by the clock when a run is saved."""

import time
from collections.abc import Callable

from mae_jax.runtime.agreement import from_first

LOOKS = 16
"""Looks at the clock in an interval, at least. With several processes each waits for the devices,
since process 0 sends its answer to the others."""


class SaveTimer:
    """Says after which steps `minutes` have passed since the last save.

    The clock is that of process 0, and every process must call the methods with the same steps: all
    of them save at the same step, whatever their own clocks show.
    """

    def __init__(
        self, minutes: float, first_step: int, clock: Callable[[], float] = time.monotonic
    ):
        """Starts the clock.

        Args:
          minutes: between two saves; 0 never asks for one.
          first_step: the last step before this start of the run.
          clock: returns seconds.
        """
        self._interval = 60 * minutes
        self._clock = clock
        self.saved(first_step)

    def saved(self, step: int) -> None:
        """Starts the clock again: this step was saved."""
        self._time, self._step = self._clock(), step
        self._next_look = step + 1

    def due(self, step: int) -> bool:
        """Returns whether the run is to be saved after this step."""
        if not self._interval or step < self._next_look:
            return False
        steps = from_first(lambda: self._steps_left(step))
        self._next_look = step + steps
        return steps == 0

    def _steps_left(self, step: int) -> int:
        """Returns after how many steps to look again; 0 if it is time."""
        passed = self._clock() - self._time
        left = self._interval - passed
        if left <= 0:
            return 0
        pace = max(passed, 1e-6) / max(step - self._step, 1)
        return max(int(min(left / 2, self._interval / LOOKS) / pace), 1)
