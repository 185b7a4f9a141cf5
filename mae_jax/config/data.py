"""Reads `config.dataset`: sources, training batches, evaluation batches."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mae_jax.config.changes import ADDED
from mae_jax.config.detection_data import has_instances, instance_options, padding, view_fields
from mae_jax.config.model import image_size
from mae_jax.config.pairs import has_masks, make_plan, mask_options, shared_fields, train_fields
from mae_jax.config.workers import IMAGES
from mae_jax.data.loader import memory
from mae_jax.data.loader.assembly import ON_HOST, Destination
from mae_jax.data.loader.batches import Loader, eval_batches, loader_of, make_loader
from mae_jax.data.loader.instances import eval_instance_batches, instance_loader
from mae_jax.data.loader.pairs import Streams, eval_pairs
from mae_jax.data.loader.stream import Stream
from mae_jax.data.sources.arrays import FeatureSource
from mae_jax.data.sources.make import PYTHON, check_source, make_source
from mae_jax.data.sources.splits import NoSplit
from mae_jax.data.sources.subset import hold_out
from mae_jax.data.transforms.color_jitter import parse_color_jitter
from mae_jax.data.transforms.pairs import eval_pair, train_pairs
from mae_jax.data.transforms.photometric import PhotometricDistortion
from mae_jax.data.transforms.randaugment import RandAugment, parse_randaugment
from mae_jax.data.transforms.views import Augment
from mae_jax.errors import UserError
from mae_jax.training.sharding import Devices, local_rows


def make_source_of(config: ConfigDict, split: str) -> Any:
    """Opens one split of the data set of a config."""
    dataset = config.dataset
    return make_source(
        dataset.name,
        split,
        path=dataset.path,
        # Of a prepared data set, images may have more bands than are chosen of them.
        channels=None if dataset.name == 'prepared' and dataset.get('bands') else dataset.channels,
        image_size=image_size(config),
        synthetic_examples=dataset.synthetic_examples,
        seed=config.seed,
        held_out_share=held_out_share(config),
        masks=mask_options(config),
        instances=instance_options(config),
    )


def held_out_share(config: ConfigDict) -> float | None:
    """Returns `dataset.held_out_share`; that of earlier versions if the config lacks the field."""
    return config.dataset.get('held_out_share', ADDED['dataset.held_out_share'])


def given_sources(
    train: Any, held_out: Any = None, share: float | None = None
) -> tuple[Any, Any] | None:
    """Returns the sources that were passed to a run: training and held-out; None without `train`.

    Without `held_out`, some training examples are held out; `share` is `dataset.held_out_share`.

    Raises:
      UserError: one is not a source.
    """
    if train is None:
        if held_out is not None:
            raise UserError('held_out is given without train: give both, or train alone.')
        return None
    for name, source in (('train', train), ('held_out', held_out)):
        if source is not None:
            check_source(f'{name} is', source)
    return hold_out(train, share) if held_out is None else (train, held_out)


def name_given(config: ConfigDict) -> ConfigDict:
    """Returns a copy of a config that states that its sources were passed from Python."""
    config = config.copy_and_resolve_references()
    config.dataset.name, config.dataset.path = PYTHON, None
    return config


def make_sources(config: ConfigDict) -> tuple[Any, Any]:
    """Opens the training and the held-out split.

    An evaluation does without training images where there are none: the held-out ones stand for
    them.
    """
    dataset = config.dataset
    try:
        source = make_source_of(config, dataset.train_split)
    except NoSplit:
        if config.get('mode') != 'eval':
            raise
        source = make_source_of(config, dataset.eval_split)
        return source, source
    return source, make_source_of(config, dataset.eval_split)


def check_classes(source: Any, held_out: Any) -> None:
    """Raises a UserError where a label means one class in training and another in evaluation."""
    train, test = list(source.class_names), list(held_out.class_names)
    if source.num_classes and not held_out.num_classes:
        raise UserError(
            f'dataset.train_split has {source.num_classes} classes and dataset.eval_split has no '
            'labels: give both splits the same class folders.'
        )
    if train and test and train != test:
        only = [', '.join(sorted(set(a) - set(b))[:5]) for a, b in ((train, test), (test, train))]
        raise UserError(
            f'dataset.train_split has {len(train)} classes and dataset.eval_split {len(test)}, and '
            f'they are not the same (only in training: {only[0] or "none"}; only in evaluation: '
            f'{only[1] or "none"}): give both splits the same class folders.'
        )


def make_augment(config: ConfigDict) -> Augment | None:
    """Makes the augmentation of `dataset.augment`, for 8-bit grey or RGB images; None for none."""
    dataset = config.dataset
    if not dataset.augment:
        return None
    match dataset.augment.split('-')[0]:
        case 'rand':
            return parse_randaugment(dataset.augment, dataset.mean, dataset.scale)
        case 'jitter':
            return parse_color_jitter(dataset.augment)
        case 'photometric':
            return PhotometricDistortion()
    raise UserError(
        f"dataset.augment={dataset.augment!r} must start with 'rand' (RandAugment, e.g. "
        "'rand-m9-mstd0.5-inc1') or 'jitter' (colours, e.g. 'jitter-b0.4-c0.4-s0.4-h0.1'), or be "
        "'photometric', or '' for none."
    )


def eval_batch_size(config: ConfigDict, mesh: Mesh, examples: int) -> int:
    """Returns the size of a micro-batch, at most what all examples need on these devices."""
    micro_batch = config.batch_size // config.optimizer.accumulate
    return min(micro_batch, -(-examples // mesh.size) * mesh.size)


def make_train_loader(
    config: ConfigDict, source: Any, rows: np.ndarray
) -> Loader | memory.MemoryLoader:
    """Makes the loader of training batches, of each of which this process loads `rows`."""
    if isinstance(source, FeatureSource):
        return memory.MemoryLoader(
            source, batch_size=config.batch_size, rows=rows, seed=config.seed
        )
    dataset = config.dataset
    batches = dict(
        batch_size=config.batch_size,
        rows=rows,
        seed=config.seed,
        repeats=dataset.repeats,
        workers=dataset.workers or 0,
        **_reading(dataset),
    )
    views = dict(
        image_size=image_size(config),
        flip=dataset.flip,
        augment=make_augment(config),
        **decoding(dataset),
    )
    has_outlines = has_masks(config) or has_instances(config)
    if has_outlines and isinstance(views['augment'], RandAugment):
        raise UserError(
            f'dataset.augment={dataset.augment!r} moves pixels, and not those of the mask: choose '
            "'photometric', or 'jitter' with strengths."
        )
    if has_instances(config):
        return instance_loader(source, views | view_fields(config, source), **batches)
    if has_masks(config):
        fields = dict(repeats=dataset.repeats, **train_fields(config, source))
        return loader_of(source, functools.partial(train_pairs, **views, **fields), **batches)
    return make_loader(
        source,
        crop_scale=tuple(dataset.crop_scale),
        crop_ratio=tuple(dataset.crop_ratio),
        crop=dataset.crop,
        resize=dataset.resize,
        canvas=dataset.canvas,
        **batches,
        **views,
    )


def decoding(dataset: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `images.decode` that the fields of a data set stand for.

    Raises:
      UserError: `dataset.bands` are not `dataset.channels` indices.
    """
    bands = dataset.get('bands')
    if bands is not None:
        if isinstance(bands, int):
            bands = (bands,)
        if len(bands) != dataset.channels or not all(type(b) is int and b >= 0 for b in bands):
            raise UserError(
                f'dataset.bands={tuple(bands)} must be {dataset.channels} numbers of bands, which '
                'count from 0: as many as dataset.channels.'
            )
    return dict(
        channels=dataset.channels,
        apply_exif=dataset.get('apply_exif', True),
        bands=bands and tuple(bands),
        nodata=dataset.get('nodata'),
    )


def _reading(dataset: ConfigDict) -> dict[str, Any]:
    """Returns the options of reading that training and evaluation share."""
    return {
        field: dataset[field]
        for field in ('threads', 'prefetch', 'timeout_s', 'on_error', 'max_bad_share')
    }


def make_eval_batches(
    config: ConfigDict,
    source: Any,
    *,
    batch_size: int,
    rows: np.ndarray,
    limit: int | None = None,
    put: Destination = ON_HOST,
) -> Stream | Streams | Iterator:
    """Loads each example once, without augmentation; at most `limit`, evenly spread.

    Args:
      put: where the batches go.
    """
    return _eval_starter(config, source, batch_size=batch_size, rows=rows, limit=limit, put=put)()


def _eval_starter(
    config: ConfigDict,
    source: Any,
    *,
    batch_size: int,
    rows: np.ndarray,
    limit: int | None,
    put: Destination,
) -> Callable[[], Stream | Streams | Iterator]:
    """Returns a function that starts a pass; what all passes share is made before."""
    batches = dict(batch_size=batch_size, rows=rows, put=put)
    if isinstance(source, FeatureSource):
        return functools.partial(memory.eval_batches, source, limit=limit, **batches)
    workers = config.dataset.workers or 0
    options = dict(**batches, **_reading(config.dataset))
    if has_masks(config):
        fields = decoding(config.dataset) | shared_fields(config, source)
        return functools.partial(
            eval_pairs,
            source,
            make_plan(config, source, batch_size, limit),
            functools.partial(eval_pair, **fields),
            workers=lambda images: min(workers, images // IMAGES),
            **options,
        )
    images = min(limit or len(source), len(source)) * len(rows) // batch_size
    options |= dict(limit=limit, workers=min(workers, images // IMAGES))
    fields = dict(image_size=image_size(config), **decoding(config.dataset))
    if has_instances(config):
        fields['fill'] = padding(config)
        return functools.partial(eval_instance_batches, source, fields, **options)
    fields['crop_share'] = config.dataset.eval_crop_share
    return functools.partial(eval_batches, source, **fields, **options)


def eval_passes(
    config: ConfigDict,
    source: Any,
    mesh: Mesh,
    batch_size: int,
    limit: int | None = None,
    alive: Callable[[], None] = lambda: None,
    check: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> Callable[[], Iterator]:
    """Returns a function that starts a pass over all evaluation batches, on the devices of a mesh.

    Args:
      check: called with the arrays of every piece of a batch.
      limit: as of `make_eval_batches`.
      alive: called at every batch, for the watchdog.
    """
    rows = local_rows(mesh, batch_size)
    options = dict(batch_size=batch_size, rows=rows, limit=limit, put=Devices(mesh, check))
    start_pass = _eval_starter(config, source, **options)

    def start() -> Iterator:
        with contextlib.closing(start_pass()) as batches:
            for batch in batches:
                alive()
                yield batch

    return start
