"""Evaluates a frozen encoder by k-NN and linear fits: the task 'knn', which trains nothing."""

import json
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mae_jax.config.data import check_classes, make_sources
from mae_jax.config.model import image_size
from mae_jax.config.workers import with_workers
from mae_jax.errors import UserError
from mae_jax.evaluation.encode import make_encode
from mae_jax.evaluation.frozen_encoder import make_frozen_encoder
from mae_jax.evaluation.probe import accuracies, accuracy_title
from mae_jax.experiment.cached_features import encode_split
from mae_jax.experiment.cautions import at_chance, say_caution, standard_error
from mae_jax.experiment.data_report import describe_data
from mae_jax.experiment.starting_weights import load_weights
from mae_jax.files.buckets import append, as_path
from mae_jax.files.lock import claim
from mae_jax.models.vit import Encoder
from mae_jax.runtime.processes import on_first, say
from mae_jax.tasks.finetune import of_encoder
from mae_jax.training import sharding


def initial_encoder(config: ConfigDict, encoder: Encoder, mesh: Mesh) -> tuple[dict[str, Any], int]:
    """Loads the encoder of `init_from` onto every device; prints what was resized.

    Returns:
      ({'encoder': parameters}, the step of its checkpoint).

    Raises:
      UserError: `init_from` holds another architecture.
    """
    images = jnp.zeros((1, *image_size(config), config.dataset.channels))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)['params']
    everywhere = sharding.replicated(mesh)
    expected = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
    )
    loaded = load_weights(config.init_from, config, {'encoder': expected}, {}, required=of_encoder)
    for line in loaded.resized:
        say(line)
    params = loaded.params['encoder']
    if any(name.startswith('encoder/norm/') for name in loaded.initial):
        del params['norm']  # fine-tuned with mean pooling, it has none
    return {'encoder': params}, loaded.step


def evaluate_knn(
    config: ConfigDict, workdir: str, sources: tuple[Any, Any] | None = None
) -> dict[str, float]:
    """Runs the task 'knn' on the frozen encoder of `init_from`, and adds a line to results.jsonl.

    Returns:
      Accuracies by name, in process 0; {} in the others.

    Raises:
      UserError: `init_from` or labels are missing, or a field does not work.
    """
    if not config.init_from:
        raise UserError("task='knn' evaluates a checkpoint: give --config.init_from.")
    fields, mesh = config.knn, sharding.make_mesh(config.mesh.fsdp)
    sharding.check_batch(config.batch_size, mesh)
    frozen = make_frozen_encoder(config, fields.pool)
    sources = sources or make_sources(config)
    check_classes(*sources)
    config, reading = with_workers(config, sources[0])
    for line in describe_data(config, *sources):
        say(line)
    say(reading)
    params, step = initial_encoder(config, frozen.encoder, mesh)
    encode = make_encode(frozen.features, mesh)
    splits = [
        encode_split(encode, params, config, source, mesh, config.batch_size) for source in sources
    ]
    values = on_first(
        lambda: accuracies(
            *(array for split in splits for array in split),
            neighbours=fields.neighbours,
            linear=fields.linear,
            shots=tuple(fields.shots),
            seed=config.seed,
        )
    )
    if values is None:
        return {}  # process 0 fits and reports
    results = {'init_from': str(config.init_from), 'step': step, 'pool': fields.pool}
    results |= {'probe_block': config.get('probe_block', -1)} | values
    with claim(workdir):
        append(as_path(workdir) / 'results.jsonl', json.dumps(results) + '\n')
    held_out = len(sources[1])
    say(f'{config.init_from}, step {step}, {held_out:,} held-out images{standard_error(held_out)}')
    for name, value in values.items():
        say(f'  {accuracy_title(name):<40} {value:.4f}')
    labels = splits[1][1]
    if line := at_chance(max(values.values()), labels, sources[0].num_classes, len(labels)):
        say_caution(line)
    return values
