"""A config -> the parts of a run; `build_task.py` makes the task among them."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import AbstractMesh, Mesh

from mae_jax.build_task import image_size, make_architecture, make_task
from mae_jax.data import memory
from mae_jax.data.color_jitter import parse_color_jitter
from mae_jax.data.loader import Loader, eval_batches, make_loader
from mae_jax.data.randaugment import parse_randaugment
from mae_jax.data.sources import make_source
from mae_jax.data.transforms import Augment
from mae_jax.data.workers import Stream
from mae_jax.errors import UserError
from mae_jax.tasks.task import Task
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.optimizer import (
    decays_finetune,
    layer_scales,
    make_optimizer,
    make_schedule,
)


def check_fields(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for a field of the loop itself that cannot work."""
    if config.mode not in ('train', 'eval'):
        raise UserError(f"mode='{config.mode}' is unknown: choose 'train' or 'eval'.")
    least = {'log_every_steps': 1, 'checkpoint_every_steps': 1, 'keep_last': 1}
    least |= {'eval_every_steps': 0, 'eval_examples': 1, 'image_every_steps': 0}
    least |= {'step_timeout_s': 1}
    values = {'optimizer.skip_nonfinite': config.optimizer.skip_nonfinite}
    values |= {field: config.get(field) for field in least}
    for field, minimum in (least | {'optimizer.skip_nonfinite': 0}).items():
        value = values[field]
        if value is not None and value < minimum:
            raise UserError(f'{field}={value} must be at least {minimum}.')


def make_source_of(config: ml_collections.ConfigDict, split: str) -> Any:
    """The train or held-out source of a config."""
    dataset = config.dataset
    return make_source(
        dataset.name,
        split,
        path=dataset.path,
        channels=dataset.channels,
        image_size=image_size(config),
        synthetic_examples=dataset.synthetic_examples,
        seed=config.seed,
    )


def make_sources(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
    """The training and the held-out examples."""
    dataset = config.dataset
    return tuple(make_source_of(config, s) for s in (dataset.train_split, dataset.eval_split))


def check_classes(source: Any, held_out: Any) -> None:
    """Raises a UserError where a label of one split would mean another class in the other."""
    train, test = list(source.class_names), list(held_out.class_names)
    if train and test and train != test:
        only = [', '.join(sorted(set(a) - set(b))[:5]) for a, b in ((train, test), (test, train))]
        raise UserError(
            f'dataset.train_split has {len(train)} classes and dataset.eval_split {len(test)}, and '
            f'they are not the same (only in training: {only[0] or "none"}; only in evaluation: '
            f'{only[1] or "none"}): give both splits the same class folders.'
        )


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is, in steps."""

    num_steps: int
    warmup_steps: int
    steps_per_epoch: float
    cut_warmup: bool  # the config's warm-up was longer than the run


def make_length(config: ml_collections.ConfigDict, examples: int) -> Length:
    """Epochs -> steps: floor(epochs * examples / batch), a warm-up cut to the run."""
    per_epoch = examples / config.batch_size
    num_steps = config.num_steps
    if num_steps is None:
        num_steps = int(config.num_epochs * examples / config.batch_size + 1e-6)
    if num_steps < 1:
        raise UserError(
            f'num_epochs={config.num_epochs} of {examples} examples is no step of '
            f'batch_size={config.batch_size}: train longer, or with a smaller batch.'
        )
    warmup = int(config.optimizer.warmup_epochs * per_epoch + 1e-6)
    return Length(num_steps, min(warmup, num_steps), per_epoch, warmup > num_steps)


def interval(config: ml_collections.ConfigDict, field: str, length: Length) -> int:
    """Every so many steps. Unset: once an epoch, and when a run ends that is shorter.

    A run on cached features takes seconds, less than its checkpoints would: once, when it ends.
    """
    if config[field] is not None:
        return config[field]
    if config.get('cache_features'):
        return length.num_steps
    return min(max(round(length.steps_per_epoch), 1), length.num_steps)


def make_tx(
    config: ml_collections.ConfigDict, length: Length
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and the learning rate of a config."""
    fields, extra = config.optimizer, {}
    schedule = make_schedule(
        peak=fields.base_lr * config.batch_size / 256,
        total_steps=length.num_steps,
        warmup_steps=length.warmup_steps,
        minimum=fields.min_lr,
    )
    if config.task == 'classify':
        if not 0 < fields.layer_decay <= 1:
            raise UserError(f'optimizer.layer_decay={fields.layer_decay} must be in (0, 1].')
        depth = make_architecture(config.model)['depth']
        extra = dict(
            momentum=fields.momentum,
            trust_coefficient=fields.trust_coefficient,
            decay_mask=decays_finetune,
        )
        if fields.layer_decay != 1:
            extra['scales'] = lambda params: layer_scales(params, fields.layer_decay, depth)
    tx = make_optimizer(
        fields.name,
        schedule,
        b1=fields.b1,
        b2=fields.b2,
        eps=fields.eps,
        weight_decay=fields.weight_decay,
        clip_norm=fields.clip_norm,
        **extra,
    )
    return tx, schedule


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Raises a UserError unless the batch of a config can be split as it asks."""
    accumulate, repeats = config.optimizer.accumulate, config.dataset.repeats
    mesh_lib.check_batch(config.batch_size, mesh, accumulate, repeats)


def step_accumulate(config: ml_collections.ConfigDict) -> int:
    """Micro-batches of a step. A linear probe sees to its own: only its encoder needs them."""
    return 1 if config.get('trained') == 'head' else config.optimizer.accumulate


def make_augment(config: ml_collections.ConfigDict) -> Augment | None:
    """`dataset.augment`, which takes 8-bit grey or RGB images alone."""
    dataset = config.dataset
    if not dataset.augment:
        return None
    match dataset.augment.split('-')[0]:
        case 'rand':
            return parse_randaugment(dataset.augment, dataset.mean, dataset.scale)
        case 'jitter':
            return parse_color_jitter(dataset.augment)
    raise UserError(
        f"dataset.augment={dataset.augment!r} must start with 'rand' (RandAugment, e.g. "
        "'rand-m9-mstd0.5-inc1') or 'jitter' (colours, e.g. 'jitter-b0.4-c0.4-s0.4-h0.1'), or be "
        "'' for none."
    )


def eval_batch_size(config: ml_collections.ConfigDict, mesh: Mesh, examples: int) -> int:
    """A micro-batch, or the multiple of the devices that holds all examples if that is smaller."""
    micro_batch = config.batch_size // config.optimizer.accumulate
    return min(micro_batch, -(-examples // mesh.size) * mesh.size)


def make_train_loader(
    config: ml_collections.ConfigDict, source: Any, rows: np.ndarray
) -> Loader | memory.MemoryLoader:
    """Training batches: these rows of each."""
    if config.get('cache_features'):
        return memory.MemoryLoader(
            source, batch_size=config.batch_size, rows=rows, seed=config.seed
        )
    dataset = config.dataset
    return make_loader(
        source,
        batch_size=config.batch_size,
        rows=rows,
        seed=config.seed,
        image_size=image_size(config),
        channels=dataset.channels,
        crop_scale=tuple(dataset.crop_scale),
        crop_ratio=tuple(dataset.crop_ratio),
        crop=dataset.crop,
        flip=dataset.flip,
        augment=make_augment(config),
        apply_exif=dataset.apply_exif,
        repeats=dataset.repeats,
        resize=dataset.resize,
        canvas=dataset.canvas,
        workers=dataset.workers,
        prefetch=dataset.prefetch,
        **_reading(dataset),
    )


def _reading(dataset: ml_collections.ConfigDict) -> dict[str, Any]:
    """How images are read, for training and for evaluation."""
    return {
        field: dataset[field] for field in ('threads', 'timeout_s', 'on_error', 'max_bad_share')
    }


def make_eval_batches(
    config: ml_collections.ConfigDict,
    source: Any,
    *,
    batch_size: int,
    rows: np.ndarray,
    limit: int | None = None,
) -> Stream | Iterator:
    """`limit` examples of `source`, evenly spread, each once, as evaluation sees them."""
    if config.get('cache_features'):
        return memory.eval_batches(source, batch_size=batch_size, rows=rows, limit=limit)
    return eval_batches(
        source,
        batch_size=batch_size,
        rows=rows,
        limit=limit,
        crop_share=config.dataset.eval_crop_share,
        image_size=image_size(config),
        channels=config.dataset.channels,
        apply_exif=config.dataset.apply_exif,
        **_reading(config.dataset),
    )


def eval_passes(
    config: ml_collections.ConfigDict,
    source: Any,
    mesh: Mesh,
    batch_size: int,
    limit: int | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Callable[[], Iterator]:
    """Starts a pass of `make_eval_batches` over this process's rows, as often as it is called.

    `alive` is called at every batch.
    """
    rows = mesh_lib.local_rows(mesh, batch_size)

    def start() -> Iterator:
        for batch in make_eval_batches(
            config, source, batch_size=batch_size, rows=rows, limit=limit
        ):
            alive()
            yield batch

    return start


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run, made from its config alone; nothing here changes."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: Mesh
    task: Task
    source: Any
    held_out: Any
    length: Length
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    identity: dict[str, Any]
    """What a checkpoint must agree with, beside the work directory's config."""

    @classmethod
    def make(cls, config: ml_collections.ConfigDict, workdir: str) -> 'Run':
        mesh = mesh_lib.make_mesh(config.mesh.fsdp)
        check_batch(config, mesh)
        source, held_out = make_sources(config)
        if config.task == 'classify':
            check_classes(source, held_out)
        task = make_task(config, source)
        length = make_length(config, len(source))
        tx, schedule = make_tx(config, length)
        identity = {
            'seed': config.seed,
            'batch_size': config.batch_size,
            'dataset': source.identity,
        }
        workdir = epath.Path(workdir)
        return cls(config, workdir, mesh, task, source, held_out, length, tx, schedule, identity)
