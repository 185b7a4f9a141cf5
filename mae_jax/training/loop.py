"""The one loop, for every task: step, log, evaluate, save, stop on request."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from clu.metrics import Average

from mae_jax.errors import Diverged, Preempted
from mae_jax.training.state import Metrics, TrainState
from mae_jax.training.throughput import Throughput

Scalars = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """When the loop ends, logs and saves, in steps."""

    num_steps: int
    log: int
    checkpoint: int


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Where metrics go.

    Attributes:
      throughput: measures speed and waiting.
      log: called with (step, scalars): means over the interval of what the step returns.
      progress: called with every finished step and what it returned.
    """

    throughput: Throughput
    log: Callable[[int, Scalars], None]
    progress: Callable[[int, Scalars], None] = lambda step, scalars: None


@dataclasses.dataclass(frozen=True)
class Saver:
    """How checkpoints are written.

    Attributes:
      save: called with (step, state, metrics of the hooks at that step); it may go on writing
        after it returned.
      is_best: returns True if these metrics are the best so far, so that the loop saves at once.
      due: called with every step; returns whether so much time has passed since the last save that
        the loop saves after it. It must return the same in every process.
    """

    save: Callable[[int, TrainState, Scalars], None]
    is_best: Callable[[Scalars], bool] = lambda metrics: False
    due: Callable[[int], bool] = lambda step: False


@dataclasses.dataclass(frozen=True)
class Supervision:
    """What watches the loop from outside.

    Attributes:
      alive: called whenever a step has ended, for the watchdog.
      stop_requested: called with every step; returns whether the run should stop after it.
      profile: called with (step, state) before every step, for the profiler.
    """

    alive: Callable[[], None] = lambda: None
    stop_requested: Callable[[int], bool] = lambda step: False
    profile: Callable[[int, TrainState], None] = lambda step, state: None


@dataclasses.dataclass(frozen=True)
class Hook:
    """A function of the state that runs every so many steps, and after the last.

    The scalars it returns are logged under that step.

    Attributes:
      early: whether it also runs after a tenth of a run that has a longer interval.
    """

    every_steps: int
    run: Callable[[int, TrainState], Scalars]
    early: bool = False

    def due(self, step: int, last: int) -> bool:
        """Returns whether the hook runs after this step of a run of `last` steps."""
        tenth = last // 10 if self.early else 0
        return step in (last, tenth if tenth < self.every_steps else 0) or (
            step % self.every_steps == 0
        )


def train(
    state: TrainState,
    step_function: Callable[[TrainState, dict], tuple[TrainState, Metrics]],
    batches: Iterator[dict],
    intervals: Intervals,
    *,
    recorder: Recorder,
    saver: Saver,
    supervision: Supervision = Supervision(),
    hooks: tuple[Hook, ...] = (),
    skip_nonfinite: int = 0,
) -> TrainState:
    """Steps from the state's own step to `intervals.num_steps`.

    Metrics are fetched one step late, so that the device always has the next step to work on.

    Args:
      state: to start from; its buffers are donated.
      step_function: the jitted (state, batch) -> (state, metrics).
      batches: device batches from the state's step on; `ready()` says whether one is waiting.
      hooks: run in order, before a save of the same step, so that a restart repeats none of them;
        but after it where the run is to stop.
      skip_nonfinite: the step leaves out updates that are not finite, and so many in a row end the
        run. 0: the step does not, and the first one ends the run.

    Raises:
      Diverged: the loss or the gradient was not finite, or was so `skip_nonfinite` times in a row;
        nothing after it is saved.
      Preempted: the run was asked to stop, and its state is saved.
    """
    last, window = intervals.num_steps, Window(recorder, supervision, intervals, skip_nonfinite)
    for step in range(int(state.step) + 1, last + 1):
        supervision.profile(step, state)
        state, metrics = step_function(state, next_batch(batches, state, recorder.throughput))
        window.add(step, metrics)
        due = [hook for hook in hooks if hook.due(step, last)]
        stopping = supervision.stop_requested(step)
        saving = stopping or step % intervals.checkpoint == 0 or step == last or saver.due(step)
        if not due and not saving:
            continue
        window.flush()
        stopping = stopping and step < last
        with recorder.throughput.paused():
            if stopping:
                saver.save(step, state, {})  # first: there may be no time for more
            metrics = run_hooks(due, step, state, recorder)
            if not stopping and (saving or saver.is_best(metrics)):
                saver.save(step, state, metrics)
        if stopping:
            raise Preempted(f'stopped at step {step} and saved: run the same command to go on.')
    supervision.profile(last + 1, state)
    return state


def run_hooks(hooks: list[Hook], step: int, state: TrainState, recorder: Recorder) -> Scalars:
    """Runs hooks in order, logs what each measured, and returns all of it."""
    metrics = {}
    for hook in hooks:
        if scalars := hook.run(step, state):
            recorder.log(step, scalars)
            metrics |= scalars
    return metrics


def next_batch(batches: Iterator[dict], state: TrainState, throughput: Throughput) -> dict:
    """Returns the next batch; only the time in which the device is idle counts as waiting."""
    if batches.ready():
        return next(batches)
    jax.block_until_ready(state)
    with throughput.waiting():
        return next(batches)


class Window:
    """Metrics of the steps since the last log line, the newest of them still on the device."""

    def __init__(
        self,
        recorder: Recorder,
        supervision: Supervision,
        intervals: Intervals,
        skip_nonfinite: int,
    ):
        self._recorder = recorder
        self._supervision = supervision
        self._intervals = intervals
        self._patience = skip_nonfinite
        self._pending: tuple[int, Metrics] | None = None
        self._means: dict[str, Average] = {}
        self._skipped, self._in_a_row = 0, 0

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step, and fetches those of the step before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Fetches what is pending, stops at a non-finite value, and logs at a log step."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._supervision.alive()
        broken = [name for name in ('loss', 'grad_norm') if not math.isfinite(scalars[name])]
        if broken:
            self._skip(step, broken[0], scalars[broken[0]])
        else:
            self._in_a_row = 0
            self._include(scalars)
        self._recorder.throughput.step(step)
        self._recorder.progress(step, scalars)
        if step % self._intervals.log == 0 or step == self._intervals.num_steps:
            self._log(step)

    def _include(self, scalars: Scalars) -> None:
        for name, value in scalars.items():
            value = Average(total=np.float64(value), count=np.int64(1))  # exact sums, on the host
            self._means[name] = self._means[name].merge(value) if name in self._means else value

    def _skip(self, step: int, name: str, value: float) -> None:
        """Counts a step whose update was left out; one too many ends the run."""
        self._skipped += 1
        self._in_a_row += 1
        if self._in_a_row < self._patience:
            return
        row = f', the last of {self._patience} such steps in a row' if self._patience else ''
        raise Diverged(
            f'{name} was {value} at step {step}{row}: the run has stopped, and nothing of it was '
            'saved since. Lower optimizer.base_lr, set optimizer.clip_norm=1, or look for broken '
            'images in the data. optimizer.skip_nonfinite=n leaves such steps out, and stops at n '
            'in a row.'
        )

    def _log(self, step: int) -> None:
        """Logs means over the window of the steps that were not left out."""
        means = {name: float(mean.compute()) for name, mean in self._means.items()}
        if self._patience:
            means['skipped_steps'] = float(self._skipped)
        self._means, self._skipped = {}, 0
        self._recorder.log(step, means | self._recorder.throughput.take(step))
