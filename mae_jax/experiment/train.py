"""Connects a run's step, data, checkpoints, metrics and supervision, and starts the loop."""

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from mae_jax.checkpoints.find import read_meta
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.config.data import make_eval_batches, make_train_loader
from mae_jax.config.length import interval
from mae_jax.experiment.estimate import make_estimate
from mae_jax.experiment.hooks import evaluation_hook, make_evaluation, picture_hook
from mae_jax.experiment.online_probe import make_online_probe
from mae_jax.experiment.setup import Setup
from mae_jax.files.mirror import Mirror, mirrored
from mae_jax.runtime.agreement import from_first
from mae_jax.runtime.preemption import stop_requests
from mae_jax.runtime.processes import say
from mae_jax.runtime.profile import profiled_steps
from mae_jax.runtime.watchdog import watchdog
from mae_jax.training import sharding
from mae_jax.training.loop import Hook, Intervals, Recorder, Saver, Supervision, train
from mae_jax.training.metrics import CONTINUED, MetricsWriter
from mae_jax.training.save_timer import SaveTimer
from mae_jax.training.state import TrainState, jit_step, make_step
from mae_jax.training.task import Task
from mae_jax.training.throughput import Throughput

PICTURES = 4
"""Held-out images in a reconstruction picture."""


def train_to_end(setup: Setup, checkpoints: Checkpoints, state: TrainState) -> TrainState:
    """Trains to the end of the run, and leaves its last checkpoint whole on disk."""
    config, mesh, length = setup.config, setup.mesh, setup.length
    first = int(state.step)
    if first >= length.num_steps:
        return state
    loader = make_train_loader(config, setup.source, sharding.local_rows(mesh, config.batch_size))
    devices = sharding.Devices(mesh, setup.task.check)

    with contextlib.ExitStack() as stack:
        alive = stack.enter_context(watchdog(config.step_timeout_s))
        stop_requested = stack.enter_context(stop_requests(first))
        mirror = stack.enter_context(open_mirror(setup))
        profile = stack.enter_context(profiled_steps(config.profile_steps, mirror.folder))
        writer = stack.enter_context(open_writer(setup, first, mirror.folder))
        batches = stack.enter_context(loader.iterate(first, put=devices))
        writer.say('compiling the step ...')
        state = train(
            state,
            jit_step(make_run_step(config, setup.task, setup.optimizer), mesh, state),
            batches,
            Intervals(
                num_steps=length.num_steps,
                log=config.log_every_steps,
                checkpoint=every(setup, config.checkpoint_every_steps),
            ),
            recorder=make_recorder(setup, loader, writer),
            saver=make_saver(setup, checkpoints, writer, mirror, first),
            supervision=Supervision(alive, stop_requested, profile),
            hooks=make_hooks(setup, writer, alive),
            skip_nonfinite=config.optimizer.skip_nonfinite,
        )
        checkpoints.wait()
    return state


def every(setup: Setup, steps: int | None) -> int:
    """Returns an interval of the config in steps."""
    return interval(steps, setup.length, once=setup.task.caches_features)


def make_run_step(
    config: ConfigDict, task: Task, optimizer: optax.GradientTransformation
) -> Callable:
    """Makes the pure update (state, batch) -> (state, metrics) of a config in which all is set."""
    return make_step(
        task,
        optimizer,
        seed=config.seed,
        accumulate=task.micro_batches(config),
        ema_decay=task.ema_decay,
        skip_nonfinite=config.optimizer.skip_nonfinite > 0,
    )


def open_mirror(setup: Setup) -> AbstractContextManager[Mirror]:
    """Opens the local folder of metrics, pictures and traces, of each process its own."""
    return mirrored(setup.workdir, () if jax.process_index() else CONTINUED, say)


def open_writer(setup: Setup, first: int, folder: epath.Path) -> MetricsWriter:
    """Opens metrics.jsonl and the loggers of `config.loggers` in a folder, from this step on."""
    return MetricsWriter(
        folder,
        start_step=first,
        total_steps=setup.length.num_steps,
        steps_per_epoch=setup.length.steps_per_epoch,
        loggers=setup.config.loggers,
        config=setup.config,
        is_writer=jax.process_index() == 0,
    )


def make_recorder(setup: Setup, loader: Any, writer: MetricsWriter) -> Recorder:
    """Connects the loop to the writer; adds learning rate, replaced images, the estimated time."""
    # Computed once: in the loop, a program of its own would wait behind the step that is running.
    rates = np.asarray(jax.jit(jax.vmap(setup.learning_rate))(np.arange(setup.length.num_steps)))

    def log(step: int, scalars: dict[str, float]) -> None:
        if 'loss' in scalars:
            scalars |= {'learning_rate': float(rates[step - 1])}
            if setup.config.dataset.on_error == 'skip':
                scalars |= {'replaced_images': float(loader.num_replaced)}
        writer.scalars(step, scalars)

    throughput = Throughput(
        batch_size=setup.config.batch_size,
        devices=list(setup.mesh.devices.flat),
        flops_per_image=setup.task.flops_per_image(),
        total_steps=setup.length.num_steps,
    )
    estimate = make_estimate(setup, writer.say)

    def progress(step: int, scalars: dict[str, float]) -> None:
        writer.progress(step, scalars)
        estimate(step)

    return Recorder(throughput, log, progress)


def make_clock(setup: Setup, first: int) -> Callable[[], dict[str, float]]:
    """Makes the clock of the run, all of its starts together, from the time of checkpoint `first`.

    It returns {'train_seconds': ...}, or {} for a run of an earlier version, which kept no time.
    """
    path = setup.workdir / 'checkpoints' / str(first)
    meta = from_first(lambda: read_meta(path)) if first else {}
    before, start = meta.get('train_seconds', None if first else 0.0), time.monotonic()

    def read() -> dict[str, float]:
        return {} if before is None else {'train_seconds': before + time.monotonic() - start}

    return read


def make_saver(
    setup: Setup, checkpoints: Checkpoints, writer: MetricsWriter, mirror: Mirror, first: int
) -> Saver:
    """Connects the loop to the checkpoints; metrics and pictures of a step are saved before it."""
    clock = make_clock(setup, first)
    timer = SaveTimer(setup.config.checkpoint_every_minutes, first)

    def save(step: int, state: TrainState, metrics: dict[str, float]) -> None:
        writer.flush()
        mirror.flush()
        checkpoints.save(step, state, setup.identity | metrics | clock())
        timer.saved(step)

    def is_best(metrics: dict[str, float]) -> bool:
        return checkpoints.is_best(metrics.get(setup.task.score))

    return Saver(save, is_best, timer.due)


def make_hooks(setup: Setup, writer: MetricsWriter, alive: Callable[[], None]) -> tuple[Hook, ...]:
    """Makes evaluation, pictures and the online probe, at the intervals of the config.

    They may take longer than any step: `alive` is called at every batch of evaluation.
    """
    task, hooks = setup.task, []
    if steps := every(setup, setup.config.eval_every_steps):
        evaluation = make_evaluation(setup, alive)
        early = not task.caches_features  # then the whole run takes seconds
        hooks.append(evaluation_hook(evaluation, every_steps=steps, early=early))
    if task.picture_every_steps and (draw := task.make_draw(picture_batch(setup), setup.mesh)):
        every_steps, name = task.picture_every_steps, task.picture_name
        hooks.append(picture_hook(draw, writer.image, every_steps=every_steps, name=name))
    if task.online_probe and task.online_probe.every_epochs:
        hooks.append(make_online_probe(setup, alive))
    return tuple(hooks)


def picture_batch(setup: Setup) -> dict[str, np.ndarray]:
    """Loads the first held-out images, the same at every start."""
    rows = np.arange(PICTURES)
    with make_eval_batches(
        setup.config, setup.held_out, batch_size=PICTURES, rows=rows, limit=PICTURES
    ) as batches:
        return next(batches)
