"""Replaces the images of a run by the features of its frozen encoder, computed once."""

import dataclasses
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from mae_jax.config.data import eval_batch_size, eval_passes
from mae_jax.data.sources.arrays import FeatureSource
from mae_jax.evaluation.encode import Encode, make_encode
from mae_jax.experiment.setup import Setup
from mae_jax.training.state import TrainState


def with_cached_features(setup: Setup, state: TrainState) -> Setup:
    """Returns the setup on features, each image seen once and not augmented; else as it is.

    Training images are left out where nothing is left to train.
    """
    if not setup.task.caches_features:
        return setup
    config, mesh = setup.config, setup.mesh
    batch_size = eval_batch_size(config, mesh, len(setup.source))
    encode = make_encode(setup.task.features, mesh)

    def cached(source: Any) -> FeatureSource:
        split = encode_split(encode, state.params, config, source, mesh, batch_size)
        return FeatureSource(*split, source.class_names, 'features')

    setup = dataclasses.replace(setup, held_out=cached(setup.held_out))
    if config.mode == 'eval' or int(state.step) >= setup.length.num_steps:
        return setup
    return dataclasses.replace(setup, source=cached(setup.source))


def encode_split(
    encode: Encode,
    params: Any,
    config: ConfigDict,
    source: Any,
    mesh: Mesh,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a whole split, with a progress bar.

    Returns:
      Features [n, D] and labels [n].
    """
    batches = eval_passes(config, source, mesh, batch_size)
    with_progress = tqdm(
        batches(),
        total=-(-len(source) // batch_size),
        desc='encoding',
        unit='batch',
        leave=False,
        disable=not sys.stderr.isatty() or jax.process_index() > 0,
    )
    return encode(params, with_progress)
