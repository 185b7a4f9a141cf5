"""A config -> the parts of a run. Here, and in `run.py`, is where configs are read."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax.data.loader import Loader, eval_batches, make_loader
from mae_jax.data.sources import make_source
from mae_jax.data.workers import Stream
from mae_jax.errors import UserError
from mae_jax.models.mae import MAE
from mae_jax.models.vit import architecture
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.optimizer import make_optimizer, make_schedule


def check_fields(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for a field of the loop itself that cannot work."""
    if config.mode not in ('train', 'eval'):
        raise UserError(f"mode='{config.mode}' is unknown: choose 'train' or 'eval'.")
    least = {'log_every_steps': 1, 'checkpoint_every_steps': 1, 'keep_last': 1}
    least |= {'eval_every_steps': 0, 'eval_examples': 1, 'image_every_steps': 0}
    for field, minimum in least.items():
        if config[field] < minimum:
            raise UserError(f'{field}={config[field]} must be at least {minimum}.')


def image_size(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """(height, width); one number stands for a square."""
    size = tuple(config.image_size)
    if len(size) not in (1, 2) or min(size) < 1:
        raise UserError(f'image_size={size} is not a height and a width: give e.g. (224, 224).')
    return (size[0], size[-1])


def make_task(config: ml_collections.ConfigDict) -> Pretrain:
    """The task of a config.

    Raises:
      UserError: a field that does not work, by name.
    """
    if config.task != 'pretrain':
        raise UserError(f"task='{config.task}' is unknown: choose 'pretrain'.")
    model, dataset = config.model, config.dataset
    arch = architecture(
        model.variant,
        patch_size=model.patch_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
    )
    if model.dtype not in ('float32', 'bfloat16'):
        raise UserError(f"model.dtype='{model.dtype}': choose 'float32' or 'bfloat16'.")
    if not len(dataset.mean) == len(dataset.std) == dataset.channels:
        raise UserError(
            f'dataset.mean has {len(dataset.mean)} and dataset.std {len(dataset.std)} values, and '
            f'dataset.channels is {dataset.channels}: give one mean and one std a channel.'
        )
    module = MAE(
        **arch,
        decoder_width=model.decoder_width,
        decoder_depth=model.decoder_depth,
        decoder_heads=model.decoder_heads,
        mask_ratio=config.mask.ratio,
        mask_strategy=config.mask.strategy,
        target=config.target.name,
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        scan=model.scan,
    )
    task = Pretrain(
        module, image_size(config), tuple(dataset.mean), tuple(dataset.std), dataset.scale
    )
    jax.eval_shape(task.init, jax.random.key(0))  # every mistake of shape shows here, at no cost
    return task


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


def make_tx(
    config: ml_collections.ConfigDict, length: Length
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and the learning rate of a config."""
    fields = config.optimizer
    schedule = make_schedule(
        peak=fields.base_lr * config.batch_size / 256,
        total_steps=length.num_steps,
        warmup_steps=length.warmup_steps,
        minimum=fields.min_lr,
    )
    tx = make_optimizer(
        fields.name,
        schedule,
        b1=fields.b1,
        b2=fields.b2,
        eps=fields.eps,
        weight_decay=fields.weight_decay,
        clip_norm=fields.clip_norm,
    )
    return tx, schedule


def eval_batch_size(config: ml_collections.ConfigDict, mesh: Mesh, examples: int) -> int:
    """A micro-batch, or the multiple of the devices that holds all examples if that is smaller."""
    micro_batch = config.batch_size // config.optimizer.accumulate
    return min(micro_batch, -(-examples // mesh.size) * mesh.size)


def make_train_loader(config: ml_collections.ConfigDict, source: Any, mesh: Mesh) -> Loader:
    """The training batches of this process."""
    dataset = config.dataset
    return make_loader(
        source,
        batch_size=config.batch_size,
        rows=mesh_lib.local_rows(mesh, config.batch_size),
        seed=config.seed,
        image_size=image_size(config),
        channels=dataset.channels,
        crop_scale=tuple(dataset.crop_scale),
        crop_ratio=tuple(dataset.crop_ratio),
        flip=dataset.flip,
        apply_exif=dataset.apply_exif,
        threads=dataset.threads,
        workers=dataset.workers,
        prefetch=dataset.prefetch,
        timeout_s=dataset.timeout_s,
        on_error=dataset.on_error,
        max_bad_share=dataset.max_bad_share,
    )


def make_eval_batches(
    config: ml_collections.ConfigDict,
    source: Any,
    *,
    batch_size: int,
    rows: np.ndarray,
    limit: int | None = None,
) -> Stream:
    """`limit` examples of `source`, evenly spread, each once, as evaluation sees them."""
    return eval_batches(
        source,
        batch_size=batch_size,
        rows=rows,
        limit=limit,
        crop_share=config.dataset.eval_crop_share,
        image_size=image_size(config),
        channels=config.dataset.channels,
        apply_exif=config.dataset.apply_exif,
        threads=config.dataset.threads,
        timeout_s=config.dataset.timeout_s,
        on_error=config.dataset.on_error,
        max_bad_share=config.dataset.max_bad_share,
    )
