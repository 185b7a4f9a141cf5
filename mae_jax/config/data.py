"""A config -> the parts of a run; `build_task.py` makes the task among them."""

from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from mae_jax.config.model import image_size
from mae_jax.data.loader import memory
from mae_jax.data.loader.batches import Loader, eval_batches, make_loader
from mae_jax.data.loader.stream import Stream
from mae_jax.data.sources.make import make_source
from mae_jax.data.transforms.color_jitter import parse_color_jitter
from mae_jax.data.transforms.randaugment import parse_randaugment
from mae_jax.data.transforms.views import Augment
from mae_jax.errors import UserError
from mae_jax.training import sharding as mesh_lib


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
