"""A frozen encoder over whole data sets: its k-NN and linear accuracy, features to learn from."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jax.sharding import Mesh

from mae_jax.config.data import check_classes, make_sources
from mae_jax.config.model import image_size
from mae_jax.errors import UserError
from mae_jax.evaluation.features import make_encode
from mae_jax.evaluation.frozen_encoder import make_frozen_encoder
from mae_jax.evaluation.probe import accuracies, describe
from mae_jax.experiment.cached_features import encode_split
from mae_jax.experiment.starting_weights import load_weights
from mae_jax.files.lock import claim
from mae_jax.models.vit import Encoder
from mae_jax.runtime.processes import on_first, say
from mae_jax.tasks.classify import of_encoder
from mae_jax.training import sharding as mesh_lib


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
    sources = make_sources(config)
    check_classes(*sources)
    params, step = initial_encoder(config, frozen.encoder, mesh)
    encode = make_encode(frozen.features, mesh)
    splits = [
        encode_split(encode, params, config, source, mesh, config.batch_size) for source in sources
    ]
    found = on_first(
        lambda: accuracies(
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
    with claim(workdir), (epath.Path(workdir) / 'results.jsonl').open('a') as file:
        file.write(json.dumps(told) + '\n')
    say(f'{config.init_from}, step {step}, {len(sources[1]):,} held-out images')
    for name, value in found.items():
        say(f'  {describe(name):<40} {value:.4f}')
    return found
