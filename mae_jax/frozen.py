"""A frozen encoder over whole data sets: its k-NN and linear accuracy, features to learn from."""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from mae_jax import build
from mae_jax import workdir as workdir_lib
from mae_jax.build import Run
from mae_jax.build_task import image_size, make_frozen_encoder
from mae_jax.data.sources import ArraySource
from mae_jax.errors import UserError
from mae_jax.hooks import Encode, make_encode, probe_hook
from mae_jax.initialize import load_weights
from mae_jax.models.vit import Encoder
from mae_jax.processes import on_first, say
from mae_jax.tasks import probe
from mae_jax.tasks.classify import of_encoder
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.loop import Hook
from mae_jax.training.state import TrainState


def with_features(parts: Run, state: TrainState) -> Run:
    """The run on what its frozen encoder makes of the images, each seen once and not augmented.

    Training images are left out where there is nothing left to train.
    """
    batch_size = build.eval_batch_size(parts.config, parts.mesh, len(parts.source))
    config = parts.config.copy_and_resolve_references()
    config.cache_features = False  # these passes read images
    encode = make_encode(parts.task.features, parts.mesh)

    def cached(source: Any) -> ArraySource:
        features, labels = encode_split(
            encode, state.params, config, source, parts.mesh, batch_size
        )
        return ArraySource(features, labels, source.class_names, 'features')

    parts = dataclasses.replace(parts, held_out=cached(parts.held_out))
    if config.mode == 'eval' or int(state.step) >= parts.length.num_steps:
        return parts
    return dataclasses.replace(parts, source=cached(parts.source))


def encode_split(
    encode: Encode,
    params: Any,
    config: ml_collections.ConfigDict,
    source: Any,
    mesh: Mesh,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Features [n,D] and labels [n] of a whole split; shows how far it is."""
    batches = build.eval_passes(config, source, mesh, batch_size)
    shown = tqdm(
        batches(),
        total=-(-len(source) // batch_size),
        desc='encoding',
        unit='batch',
        leave=False,
        disable=not sys.stderr.isatty() or jax.process_index() > 0,
    )
    return encode(params, shown)


def make_online_probe(parts: Run, alive: Callable[[], None]) -> Hook:
    """k-NN and linear fit on a share of the labelled images; reads the state and draws nothing.

    `alive` is called at every batch.
    """
    config, mesh = parts.config, parts.mesh
    fields = config.online_probe
    if not 0 < fields.share <= 1:
        raise UserError(f'online_probe.share={fields.share} must be above 0 and at most 1.')
    if not parts.source.num_classes:
        raise UserError(
            'online_probe needs labels, and these images have none: set '
            'online_probe.every_epochs=0.'
        )
    build.check_classes(parts.source, parts.held_out)
    counts = [max(round(fields.share * len(s)), 1) for s in (parts.source, parts.held_out)]
    batch_size = build.eval_batch_size(config, mesh, max(counts))
    train, test = (
        build.eval_passes(config, source, mesh, batch_size, count, alive)
        for source, count in zip((parts.source, parts.held_out), counts, strict=True)
    )
    return probe_hook(
        make_encode(make_frozen_encoder(config).features, mesh),
        train,
        test,
        every_steps=max(round(fields.every_epochs * parts.length.steps_per_epoch), 1),
    )


def encoder_accuracies(parts: Run, params: Any) -> dict[str, float]:
    """Probes an encoder on the config's own train and held-out splits; {} but in process 0."""
    config, mesh = parts.config, parts.mesh
    batch_size = build.eval_batch_size(config, mesh, len(parts.source))
    encode = make_encode(make_frozen_encoder(config).features, mesh)
    params = {'encoder': params['encoder']}
    splits = [
        encode_split(encode, params, config, source, mesh, batch_size)
        for source in (parts.source, parts.held_out)
    ]
    found = on_first(lambda: probe.accuracies(*(array for split in splits for array in split)))
    return found or {}


def initial_encoder(
    config: ml_collections.ConfigDict, encoder: Encoder, mesh: Mesh
) -> tuple[dict[str, Any], int]:
    """({'encoder': parameters of `init_from`, on every device}, its step); says what was resized.

    Raises:
      UserError: `init_from` holds another architecture.
    """
    images = jnp.zeros((1, *image_size(config), config.dataset.channels))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)['params']
    everywhere = mesh_lib.replicated(mesh)
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
    )
    loaded = load_weights(
        config.init_from,
        config,
        {'encoder': wanted},
        {},
        required=of_encoder,
    )
    for line in loaded.report[1:-2]:  # nothing is left at an initial value here
        say(line)
    params = loaded.params['encoder']
    if any(name.startswith('encoder/norm/') for name in loaded.initial):
        del params['norm']  # fine-tuned with mean pooling, it has none
    return {'encoder': params}, loaded.step


def evaluate_knn(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """The task 'knn': what the encoder of `init_from` is worth, frozen; adds to results.jsonl.

    Raises:
      UserError: `init_from` or labels are missing, or a field does not work.
    """
    if not config.init_from:
        raise UserError("task='knn' evaluates a checkpoint: give --config.init_from.")
    fields, mesh = config.knn, mesh_lib.make_mesh(config.mesh.fsdp)
    mesh_lib.check_batch(config.batch_size, mesh)
    frozen = make_frozen_encoder(config, fields.pool)
    sources = build.make_sources(config)
    build.check_classes(*sources)
    params, step = initial_encoder(config, frozen.encoder, mesh)
    encode = make_encode(frozen.features, mesh)
    splits = [
        encode_split(encode, params, config, source, mesh, config.batch_size) for source in sources
    ]
    found = on_first(
        lambda: probe.accuracies(
            *(array for split in splits for array in split),
            neighbours=fields.neighbours,
            linear=fields.linear,
            shots=tuple(fields.shots),
            seed=config.seed,
        )
    )
    if found is None:
        return {}  # one process fits and tells
    told = {'init_from': str(config.init_from), 'step': step, 'pool': fields.pool} | found
    with workdir_lib.claim(workdir), (epath.Path(workdir) / 'results.jsonl').open('a') as file:
        file.write(json.dumps(told) + '\n')
    say(f'{config.init_from}, step {step}, {len(sources[1]):,} held-out images')
    for name, value in found.items():
        say(f'  {probe.describe(name):<40} {value:.4f}')
    return found
