"""A config and a work directory -> a finished run.

What a run starts from is decided in this order:
1. a checkpoint in the work directory: the run goes on from it;
2. `config.init_from`: the weights of another run, with a fresh optimiser at step 0;
3. the initialisation of `config.seed`.
"""

import contextlib
import dataclasses
import os
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from mae_jax import build
from mae_jax import workdir as workdir_lib
from mae_jax.checkpoint import Checkpoints, locate, restore_params
from mae_jax.errors import UserError
from mae_jax.hooks import evaluation_hook, picture_hook, probe_accuracies
from mae_jax.tasks import probe
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.loop import Hook, Loop, stop_signals, train
from mae_jax.training.metrics import MetricsWriter, Throughput, parameter_table
from mae_jax.training.state import TrainState, abstract_state, create_state, jit_step, make_step

PICTURES = 8
"""Held-out images in a reconstruction picture."""


def start_processes() -> None:
    """Joins the other processes of a run, where the environment says that there are some.

    A TPU pod and Slurm tell by themselves; elsewhere JAX_COORDINATOR_ADDRESS (host:port),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID do.
    """
    environment = os.environ
    if 'JAX_COORDINATOR_ADDRESS' in environment:
        try:
            processes = int(environment['JAX_NUM_PROCESSES']), int(environment['JAX_PROCESS_ID'])
        except (KeyError, ValueError) as error:
            raise UserError(
                'JAX_COORDINATOR_ADDRESS is set: set JAX_NUM_PROCESSES and JAX_PROCESS_ID beside '
                'it, to numbers.'
            ) from error
        jax.distributed.initialize(environment['JAX_COORDINATOR_ADDRESS'], *processes)
    elif ',' in environment.get('TPU_WORKER_HOSTNAMES', '') or (
        int(environment.get('SLURM_NTASKS', '1')) > 1
    ):
        jax.distributed.initialize()


def say(message: str) -> None:
    """One line to the user, from one process."""
    if jax.process_index() == 0:
        print(message, flush=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run, made from its config alone; nothing here changes."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: Mesh
    task: Pretrain
    source: Any
    held_out: Any
    length: build.Length
    tx: optax.GradientTransformation
    schedule: optax.Schedule

    @classmethod
    def make(cls, config: ml_collections.ConfigDict, workdir: str) -> 'Run':
        task = build.make_task(config)
        mesh = mesh_lib.make_mesh(config.mesh.fsdp)
        mesh_lib.check_batch(config.batch_size, mesh, config.optimizer.accumulate)
        source = build.make_source_of(config, config.dataset.train_split)
        held_out = build.make_source_of(config, config.dataset.eval_split)
        length = build.make_length(config, len(source))
        tx, schedule = build.make_tx(config, length)
        return cls(config, epath.Path(workdir), mesh, task, source, held_out, length, tx, schedule)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with, beside the work directory's config."""
        return {
            'seed': self.config.seed,
            'batch_size': self.config.batch_size,
            'dataset': self.source.identity,
        }


def run(config: ml_collections.ConfigDict, workdir: str) -> TrainState:
    """Runs a config in a work directory, from where the directory's last checkpoint left it.

    Returns:
      The state after the last step.

    Raises:
      UserError: something the user can mend; `Diverged` and `Preempted` have an exit status of
        their own.
    """
    build.check_fields(config)
    parts = Run.make(config, workdir)
    writer = jax.process_index() == 0  # the others would wait for its lock, and write over it
    with (
        workdir_lib.claim(workdir) if writer else contextlib.nullcontext(),
        Checkpoints(
            parts.workdir / 'checkpoints',
            keep_last=config.keep_last,
            keep_every_steps=config.keep_every_steps,
            log=say,
        ) as checkpoints,
    ):
        for change in workdir_lib.check_config(workdir, config) if writer else ():
            say(change)
        state = starting_state(parts, checkpoints)
        step = int(state.step)
        announce(parts, state)
        if config.mode == 'eval':
            hook = make_evaluation(parts)
            say(f'held-out loss at step {step}: {hook.run(step, state)["eval/loss"]:.4f}')
            return state
        if step < parts.length.num_steps:
            state = train_from(parts, checkpoints, state)
        conclude(parts, state)
        return state


def starting_state(parts: Run, checkpoints: Checkpoints) -> TrainState:
    """The state to go on from; the module's docstring says how it is chosen."""
    target = abstract_state(parts.task, parts.tx, parts.mesh)
    restored = checkpoints.restore(target)
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
    if parts.config.mode == 'eval':
        raise UserError(f'{parts.workdir} holds no checkpoint to evaluate: train first.')
    state = create_state(parts.task, parts.tx, parts.mesh, parts.config.seed)
    if parts.config.init_from:
        state = state.replace(params=initial_params(parts.config.init_from, state.params))
        say(f'starting from the weights of {parts.config.init_from}')
    return state


def initial_params(path: str, params: Any) -> Any:
    """The parameters of another run, laid out as `params` are.

    Raises:
      UserError: there are none, or they are those of another architecture.
    """
    found = traverse_util.flatten_dict(restore_params(*locate(path))[0], sep='/')
    wanted = traverse_util.flatten_dict(params, sep='/')
    differing = [
        f'{name}: {getattr(found.get(name), "shape", "missing")} there, '
        f'{getattr(wanted.get(name), "shape", "missing")} here'
        for name in sorted(found.keys() | wanted.keys())
        if getattr(found.get(name), 'shape', None) != getattr(wanted.get(name), 'shape', None)
    ]
    if differing:
        shown = '; '.join(differing[:5]) + ('; ...' if len(differing) > 5 else '')
        raise UserError(
            f'init_from={path} holds another model ({shown}): give the model fields it was '
            'trained with.'
        )
    placed = {name: jax.device_put(found[name], wanted[name].sharding) for name in wanted}
    return traverse_util.unflatten_dict(placed, sep='/')


def announce(parts: Run, state: TrainState) -> None:
    """What is about to run: the model, the machine, the length."""
    devices, config, length = parts.mesh.devices.flat, parts.config, parts.length
    say(parameter_table(state.params, parts.task.is_trained))
    epochs = length.num_steps / length.steps_per_epoch
    say(
        f'{len(parts.source):,} examples of {config.dataset.name}; {length.num_steps:,} steps of '
        f'{config.batch_size} ({epochs:.1f} epochs), {length.warmup_steps:,} of warm-up'
    )
    if length.cut_warmup:
        say('the warm-up is longer than the run, and is cut to it')
    say(
        f'{parts.mesh.size} {devices[0].device_kind} device(s), {jax.process_count()} process(es), '
        f'mesh {dict(parts.mesh.shape)}; writing to {parts.workdir}'
    )


def train_from(parts: Run, checkpoints: Checkpoints, state: TrainState) -> TrainState:
    """Trains to the end of the run, and leaves its last checkpoint whole on disk."""
    config, mesh = parts.config, parts.mesh
    throughput = Throughput(
        batch_size=config.batch_size,
        devices=list(mesh.devices.flat),
        flops_per_image=parts.task.flops_per_image(),
        total_steps=parts.length.num_steps,
    )
    step = make_step(parts.task, parts.tx, seed=config.seed, accumulate=config.optimizer.accumulate)
    loader = build.make_train_loader(config, parts.source, mesh)
    first = int(state.step)
    with (
        stop_signals() as stopping,
        MetricsWriter(
            parts.workdir,
            start_step=first,
            total_steps=parts.length.num_steps,
            steps_per_epoch=parts.length.steps_per_epoch,
            is_writer=jax.process_index() == 0,
        ) as writer,
        loader.iterate(
            first, put=lambda batch: mesh_lib.put_batch(mesh, batch, config.batch_size)
        ) as batches,
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
                num_steps=parts.length.num_steps,
                log_every_steps=config.log_every_steps,
                checkpoint_every_steps=config.checkpoint_every_steps,
                throughput=throughput,
                log=log,
                save=lambda step, state: checkpoints.save(step, state, parts.identity),
                hooks=make_hooks(parts, writer),
                progress=writer.progress,
                stopping=stopping,
            ),
            state,
        )
        checkpoints.wait()
    return state


def make_hooks(parts: Run, writer: MetricsWriter) -> tuple[Hook, ...]:
    """Held-out loss and pictures, at the intervals the config asks for."""
    config = parts.config
    hooks = []
    if config.eval_every_steps:
        hooks.append(make_evaluation(parts))
    if config.image_every_steps:
        rows = np.arange(PICTURES)
        with build.make_eval_batches(
            config, parts.held_out, batch_size=PICTURES, rows=rows, limit=PICTURES
        ) as batches:
            batch = next(batches)
        hooks.append(
            picture_hook(
                parts.task, parts.mesh, batch, writer.image, every_steps=config.image_every_steps
            )
        )
    return tuple(hooks)


def make_evaluation(parts: Run) -> Hook:
    """Held-out loss over `eval_examples` images, evenly spread over the split."""
    config = parts.config
    examples = min(config.eval_examples, len(parts.held_out))
    batch_size = build.eval_batch_size(config, parts.mesh, examples)

    def batches():
        return build.make_eval_batches(
            config,
            parts.held_out,
            batch_size=batch_size,
            rows=mesh_lib.local_rows(parts.mesh, batch_size),
            limit=examples,
        )

    return evaluation_hook(
        parts.task, parts.mesh, batches, batch_size=batch_size, every_steps=config.eval_every_steps
    )


def conclude(parts: Run, state: TrainState) -> None:
    """Says that the run is finished, what its encoder is worth if asked, and where things are."""
    say(f'finished at step {int(state.step)} of {parts.length.num_steps}')
    if parts.config.probe_at_end:
        untrained = create_state(parts.task, parts.tx, parts.mesh, parts.config.seed)
        results = [encoder_accuracies(parts, params) for params in (untrained.params, state.params)]
        say('accuracy of the frozen encoder     untrained  pretrained')
        for name, label in probe.NAMES.items():
            say(f'  {label:<32} {results[0][name]:9.3f}  {results[1][name]:10.3f}')
    picture = parts.workdir / 'images' / 'latest.png'
    if picture.exists():
        say(f'reconstructions: {picture}')
    say(f'checkpoint:      {parts.workdir / "checkpoints" / str(int(state.step))}')


def encoder_accuracies(parts: Run, params: Any) -> dict[str, float]:
    """Probes an encoder on the config's own train and held-out splits."""
    rows = np.arange(256)
    train, test = (
        build.make_eval_batches(parts.config, source, batch_size=len(rows), rows=rows)
        for source in (parts.source, parts.held_out)
    )
    return probe_accuracies(parts.task, params, train, test)
