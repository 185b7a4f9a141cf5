"""A config and a work directory -> a finished run.

What a run starts from is decided in this order:
1. a checkpoint in the work directory: the run goes on from it;
2. `config.init_from`: the weights of another run, with a fresh optimiser at step 0;
3. the initialisation of `config.seed`.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.config.data import make_eval_batches, make_train_loader
from mae_jax.config.length import interval
from mae_jax.errors import UserError
from mae_jax.experiment.build import Run, check_fields, step_accumulate
from mae_jax.experiment.cached_features import with_features
from mae_jax.experiment.fit_target import fit_target
from mae_jax.experiment.hooks import evaluation_hook, picture_hook
from mae_jax.experiment.knn import evaluate_knn
from mae_jax.experiment.probes import make_online_probe
from mae_jax.experiment.report import SCORE, announce, conclude, make_evaluation, report_evaluation
from mae_jax.experiment.starting_weights import has_begun, inherit, load_weights
from mae_jax.experiment.workdir import check_config, check_shared
from mae_jax.files.lock import claim
from mae_jax.runtime.preemption import stop_requests
from mae_jax.runtime.processes import on_first, say
from mae_jax.runtime.watchdog import watchdog
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.loop import Hook, Loop, train
from mae_jax.training.metrics import MetricsWriter
from mae_jax.training.state import (
    TrainState,
    abstract_state,
    create_state,
    jit_step,
    make_step,
    replace_params,
)
from mae_jax.training.throughput import Throughput

PICTURES = 8
"""Held-out images in a reconstruction picture."""


def run(config: ml_collections.ConfigDict, workdir: str) -> TrainState | dict[str, float]:
    """Runs a config in a work directory, from where the directory's last checkpoint left it.

    Returns:
      The state after the last step; for the task 'knn', accuracies.

    Raises:
      UserError: something the user can mend; `Diverged` and `Preempted` have an exit status of
        their own.
    """
    config = inherit(config, workdir)
    if config.task == 'knn':
        return evaluate_knn(config, workdir)
    check_fields(config)
    parts = Run.make(config, workdir)
    with contextlib.ExitStack() as stack:
        for change in on_first(lambda: stack.enter_context(_held(config, workdir))) or ():
            say(change)
        check_shared(workdir)
        checkpoints = stack.enter_context(
            Checkpoints(
                parts.workdir / 'checkpoints',
                keep_last=config.keep_last,
                keep_every_steps=config.keep_every_steps,
                score=SCORE,
                log=say,
            )
        )
        state = starting_state(parts, checkpoints)
        announce(parts, state)
        if config.get('cache_features'):
            parts = with_features(parts, state)
        if config.mode == 'eval':
            report_evaluation(parts, state)
            return state
        if int(state.step) < parts.length.num_steps:
            state = train_from(parts, checkpoints, state)
        conclude(parts, checkpoints, state)
        return state


@contextlib.contextmanager
def _held(config: ml_collections.ConfigDict, workdir: str) -> Iterator[list[str]]:
    """Holds the directory for this run and its config; gives what `check_config` tells.

    One process does it for all: each would find the directory held by another.
    """
    with claim(workdir):
        yield check_config(workdir, config, begun=has_begun(workdir))


def starting_state(parts: Run, checkpoints: Checkpoints) -> TrainState:
    """The state to go on from; the module's docstring says how it is chosen."""
    config = parts.config
    options = dict(ema_decay=config.get('ema_decay'))
    restored = checkpoints.restore(abstract_state(parts.task, parts.tx, parts.mesh, **options))
    if restored is not None:
        state, step, meta = restored
        differing = {k: (meta.get(k), v) for k, v in parts.identity.items() if meta.get(k) != v}
        if differing:
            told = '; '.join(f'{k} was {old}, now {new}' for k, (old, new) in differing.items())
            raise UserError(
                f'{parts.workdir} holds a run on other data ({told}): choose another --workdir.'
            )
        say(f'resuming at step {step} of {parts.length.num_steps} from {parts.workdir}')
        return state
    evaluating = config.mode == 'eval'
    if evaluating and not config.init_from:
        raise UserError(f'{parts.workdir} holds no checkpoint to evaluate: train first.')
    state = create_state(parts.task, parts.tx, parts.mesh, config.seed, **options)
    if not config.init_from:
        if config.get('trained', 'all') != 'all':
            say(f'init_from is unset: trained={config.trained} on top of an untrained encoder')
        return fit_target(parts, state)
    loaded = load_weights(
        config.init_from, config, state.params, state.model_state, required=parts.task.is_required
    )
    for line in loaded.report:
        say(line)
    if evaluating and loaded.initial:
        raise UserError(
            f'{config.init_from} has no trained {", ".join(loaded.initial)}: nothing to evaluate; '
            'fine-tune it first.'
        )
    if evaluating:
        state = state.replace(step=jnp.asarray(loaded.step, jnp.int32))  # to be named by
    state = replace_params(state, loaded.params).replace(model_state=loaded.model_state)
    return fit_target(parts, state, has_basis='pca/basis' not in loaded.initial)


def train_from(parts: Run, checkpoints: Checkpoints, state: TrainState) -> TrainState:
    """Trains to the end of the run, and leaves its last checkpoint whole on disk."""
    config, mesh, length = parts.config, parts.mesh, parts.length
    throughput = Throughput(
        batch_size=config.batch_size,
        devices=list(mesh.devices.flat),
        flops_per_image=parts.task.flops_per_image(),
        total_steps=length.num_steps,
    )
    step = make_step(
        parts.task,
        parts.tx,
        seed=config.seed,
        accumulate=step_accumulate(config),
        ema_decay=config.get('ema_decay'),
        skip_nonfinite=config.optimizer.skip_nonfinite > 0,
    )
    loader = make_train_loader(config, parts.source, mesh_lib.local_rows(mesh, config.batch_size))
    first = int(state.step)

    def put(batch):
        parts.task.check(batch)
        return mesh_lib.put_batch(mesh, batch)

    with (
        watchdog(config.step_timeout_s) as alive,
        stop_requests(first) as stopping,
        MetricsWriter(
            parts.workdir,
            start_step=first,
            total_steps=length.num_steps,
            steps_per_epoch=length.steps_per_epoch,
            is_writer=jax.process_index() == 0,
        ) as writer,
        loader.iterate(first, put=put) as batches,
    ):

        def log(step, scalars):
            if 'loss' in scalars:
                scalars |= {'learning_rate': float(parts.schedule(step - 1))}
                if config.dataset.on_error == 'skip':
                    scalars |= {'replaced_images': float(loader.num_replaced)}
            writer.scalars(step, scalars)

        writer.say('compiling the step ...')
        state = train(
            Loop(
                step=jit_step(step, mesh, state),
                batches=batches,
                num_steps=length.num_steps,
                log_every_steps=config.log_every_steps,
                checkpoint_every_steps=interval(config, 'checkpoint_every_steps', length),
                throughput=throughput,
                log=log,
                save=lambda step, state, found: checkpoints.save(
                    step, state, parts.identity | found
                ),
                hooks=make_hooks(parts, writer, alive),
                worth_saving=lambda found: checkpoints.beats_best(found.get(SCORE)),
                progress=writer.progress,
                stopping=stopping,
                alive=alive,
                skip_nonfinite=config.optimizer.skip_nonfinite,
            ),
            state,
        )
        checkpoints.wait()
    return state


def make_hooks(parts: Run, writer: MetricsWriter, alive: Callable[[], None]) -> tuple[Hook, ...]:
    """Evaluation, pictures and the online probe, at the intervals the config asks for.

    They may take longer than any step: `alive` is called at every batch of evaluation.
    """
    config = parts.config
    hooks = []
    if every := interval(config, 'eval_every_steps', parts.length):
        hooks.append(evaluation_hook(make_evaluation(parts, alive), every_steps=every))
    every = config.get('image_every_steps')
    if every and config.target.name != 'token':  # tokens are no pixels to draw
        rows = np.arange(PICTURES)
        with make_eval_batches(
            config, parts.held_out, batch_size=PICTURES, rows=rows, limit=PICTURES
        ) as batches:
            batch = next(batches)
        hooks.append(picture_hook(parts.task, parts.mesh, batch, writer.image, every_steps=every))
    online = config.get('online_probe')
    if online and online.every_epochs:
        hooks.append(make_online_probe(parts, alive))
    return tuple(hooks)
