"""A frozen encoder over whole data sets: its k-NN and linear accuracy, features to learn from."""

import dataclasses
import sys
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from mae_jax.config.data import eval_batch_size, eval_passes
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.evaluation.features import Encode, make_encode
from mae_jax.experiment.build import Run
from mae_jax.training.state import TrainState


def with_features(parts: Run, state: TrainState) -> Run:
    """The run on what its frozen encoder makes of the images, each seen once and not augmented.

    Training images are left out where there is nothing left to train.
    """
    batch_size = eval_batch_size(parts.config, parts.mesh, len(parts.source))
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
    batches = eval_passes(config, source, mesh, batch_size)
    shown = tqdm(
        batches(),
        total=-(-len(source) // batch_size),
        desc='encoding',
        unit='batch',
        leave=False,
        disable=not sys.stderr.isatty() or jax.process_index() > 0,
    )
    return encode(params, shown)
