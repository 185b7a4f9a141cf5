"""Measures the speed of a run, its waiting for input, MFU and remaining time."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from mae_jax.runtime.chips import peak_flops


class Throughput:
    """Counts steps, seconds and seconds of waiting since the last `take`.

    Args:
      batch_size: images a step, over all devices.
      flops_per_image: forward and backward.
      devices: of the mesh; their kind decides the peak that MFU is a share of.
      total_steps: for the ETA.
      clock: seconds.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        flops_per_image: float,
        devices: Sequence[jax.Device],
        total_steps: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._devices = len(devices)
        self._peak = peak_flops(devices[0].device_kind)
        self._total_steps = total_steps
        self._clock = clock
        self._first: tuple[int, float] | None = None  # the first step's end: after compilation
        self._steps, self._waited, self._since = 0, 0.0, clock()

    def step(self, step: int) -> None:
        """Counts a finished step; the first one, which included compilation, is left out."""
        if self._first is None:
            self._first = (step, self._clock())
            self._steps, self._waited, self._since = 0, 0.0, self._clock()
        else:
            self._steps += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out: evaluation, pictures, the blocking part of a save."""
        start = self._clock()
        yield
        self._since += self._clock() - start

    def take(self, step: int) -> dict[str, float]:
        """Returns rates since the last call, by name; {} where no step was timed."""
        now = self._clock()
        seconds, steps, waited = now - self._since, self._steps, self._waited
        self._steps, self._waited, self._since = 0, 0.0, now
        if not steps or seconds <= 0:
            return {}
        images = steps * self._batch_size / seconds
        rates = {
            'images_per_second': images,
            'images_per_second_per_device': images / self._devices,
            'input_wait': min(waited / seconds, 1.0),
        }
        if self._peak and self._flops_per_image:
            rates['mfu'] = images * self._flops_per_image / (self._devices * self._peak)
        first_step, first_time = self._first
        if step > first_step:  # pauses included: it is the user who waits
            per_step = (now - first_time) / (step - first_step)
            rates['eta_seconds'] = (self._total_steps - step) * per_step
        return rates
