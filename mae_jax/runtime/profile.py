"""Writes a trace of a few steps of a run, for TensorBoard's profiler or Perfetto."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from clu import profiler

from mae_jax.errors import UserError


@contextlib.contextmanager
def profiled_steps(
    steps: tuple[int, int] | None, folder: str | os.PathLike
) -> Iterator[Callable[[int, Any], None]]:
    """Yields a function to call with (step, state) before every step.

    It starts the profiler before the first of `steps`, (from, to), and stops it when the last of
    them has finished on the devices; a run that ends earlier keeps the trace of its steps. The
    trace is in `folder`, under plugins/profile/.

    Raises:
      UserError: `steps` is not a range of steps.
    """
    if steps is None:
        yield lambda step, state: None
        return
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
        raise UserError(f'profile_steps={tuple(steps)} must be (from, to), such as (10, 20).')
    first, last = steps
    with contextlib.ExitStack() as running:

        def profile(step: int, state: Any) -> None:
            if step == first:
                profiler.start(os.fspath(folder))
                running.callback(profiler.stop)
            elif step == last + 1:
                jax.block_until_ready(state)
                running.close()

        yield profile
