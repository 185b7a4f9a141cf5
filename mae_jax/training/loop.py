"""The one loop, for any task: step, log, evaluate, save, stop when told."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax

from mae_jax.errors import Diverged, Preempted
from mae_jax.training.state import Metrics, TrainState
from mae_jax.training.throughput import Throughput

Scalars = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Hook:
    """What is done every so many steps with the state as it then is.

    Also after the last step of a run that is at least so long. The scalars it returns are logged
    under that step.
    """

    every_steps: int
    run: Callable[[int, TrainState], Scalars]

    def due(self, step: int, last: int) -> bool:
        return step % self.every_steps == 0 or (step == last and last >= self.every_steps)


@dataclasses.dataclass
class Loop:
    """What a run gives its loop. `train` is the loop itself.

    Attributes:
      step: the jitted (state, batch) -> (state, metrics).
      batches: device batches from the state's step on; `ready()` says whether one is waiting.
      num_steps: the step at which training ends.
      log: called with (step, scalars): means over the interval for what a step reports.
      save: called with (step, state, what the hooks found at it); may go on writing after it
        returned.
      progress: called with every finished step.
      hooks: run in order, before a save of the same step, so that a restart repeats none of them;
        but after it where the run is to stop.
      worth_saving: whether what the hooks found calls for a checkpoint out of turn.
      stopping: called with every step, tells whether the run was asked to stop after it.
      alive: called whenever a step has ended.
      skip_nonfinite: the step leaves out an update that is not finite; so many in a row end the
        run. 0: the step knows nothing of it, and the first one ends the run.
    """

    step: Callable[[TrainState, dict], tuple[TrainState, Metrics]]
    batches: Iterator[dict]
    num_steps: int
    log_every_steps: int
    checkpoint_every_steps: int
    throughput: Throughput
    log: Callable[[int, Scalars], None]
    save: Callable[[int, TrainState, Scalars], None]
    hooks: tuple[Hook, ...] = ()
    worth_saving: Callable[[Scalars], bool] = lambda found: False
    progress: Callable[[int], None] = lambda step: None
    stopping: Callable[[int], bool] = lambda step: False
    alive: Callable[[], None] = lambda: None
    skip_nonfinite: int = 0


def train(loop: Loop, state: TrainState) -> TrainState:
    """Steps from the state's own step to `num_steps`.

    Metrics are fetched one step late, so that the device always has the next step to work on.

    Raises:
      Diverged: the loss or the gradient was not finite, or was so `skip_nonfinite` times in a row;
        nothing after it is saved.
      Preempted: the run was asked to stop, and has handed its state to `save`.
    """
    window = Window(loop)
    for step in range(int(state.step) + 1, loop.num_steps + 1):
        state, metrics = loop.step(state, next_batch(loop, state))
        window.add(step, metrics)
        hooks = [hook for hook in loop.hooks if hook.due(step, loop.num_steps)]
        stopping = loop.stopping(step)
        saving = stopping or step % loop.checkpoint_every_steps == 0 or step == loop.num_steps
        if not hooks and not saving:
            continue
        window.flush()
        found = {}
        stopping = stopping and step < loop.num_steps
        with loop.throughput.paused():
            if stopping:
                loop.save(step, state, found)  # first: there may be no time for more
            for hook in hooks:
                if scalars := hook.run(step, state):
                    loop.log(step, scalars)
                    found |= scalars
            if not stopping and (saving or loop.worth_saving(found)):
                loop.save(step, state, found)
        if stopping:
            raise Preempted(f'stopped at step {step} and saved: run the same command to go on.')
    return state


def next_batch(loop: Loop, state: TrainState) -> dict:
    """The next batch; counts as waiting only the time in which the device had nothing to do."""
    if loop.batches.ready():
        return next(loop.batches)
    jax.block_until_ready(state)
    with loop.throughput.waiting():
        return next(loop.batches)


class Window:
    """Metrics of the steps since the last log line, the newest of them still on the device."""

    def __init__(self, loop: Loop):
        self._loop = loop
        self._pending: tuple[int, Metrics] | None = None
        self._fetched: list[Scalars] = []
        self._skipped, self._in_a_row = 0, 0

    def add(self, step: int, metrics: Metrics) -> None:
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Fetches what is pending, stops at a non-finite value, and logs at a log step."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._loop.alive()
        broken = [name for name in ('loss', 'grad_norm') if not math.isfinite(scalars[name])]
        if broken:
            self._skip(step, broken[0], scalars[broken[0]])
        else:
            self._in_a_row = 0
            self._fetched.append(scalars)
        self._loop.throughput.step(step)
        self._loop.progress(step)
        if step % self._loop.log_every_steps == 0 or step == self._loop.num_steps:
            self._log(step)

    def _skip(self, step: int, name: str, value: float) -> None:
        """Counts a step whose update was left out; one too many ends the run."""
        self._skipped += 1
        self._in_a_row += 1
        patience = self._loop.skip_nonfinite
        if self._in_a_row < patience:
            return
        row = f', the last of {patience} such steps in a row' if patience else ''
        raise Diverged(
            f'{name} was {value} at step {step}{row}: the run has stopped, and nothing of it was '
            'saved since. Lower optimizer.base_lr, set optimizer.clip_norm=1, or look for broken '
            'images in the data. optimizer.skip_nonfinite=n leaves such steps out, and stops at n '
            'in a row.'
        )

    def _log(self, step: int) -> None:
        """Means over the window of the steps that were not left out."""
        names = self._fetched[0] if self._fetched else ()
        means = {
            name: math.fsum(s[name] for s in self._fetched) / len(self._fetched) for name in names
        }
        if self._loop.skip_nonfinite:
            means['skipped_steps'] = float(self._skipped)
        self._fetched, self._skipped = [], 0
        self._loop.log(step, means | self._loop.throughput.take(step))
