"""Features of every example of a split."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from mae_jax.errors import UserError
from mae_jax.training import sharding as mesh_lib

Batch = dict[str, jax.Array]
Passes = Callable[[], Iterable[Batch]]
"""Starts a pass over evaluation batches, which are on the devices of a mesh."""
Features = Float[np.ndarray, 'n D']
Labels = Int[np.ndarray, ' n']
Encode = Callable[[Any, Iterable[Batch]], tuple[Features, Labels]]
"""(parameters, batches) -> features and labels of every valid row."""


def make_encode(features: Callable[[Any, Batch], jax.Array], mesh: Mesh) -> Encode:
    """Makes a function that computes the features of a split; every process gets all of them.

    The function raises a UserError for an image without a label.

    Args:
      features: (parameters, batch) -> features [B, D], such as `FrozenEncoder.features`.
      mesh: devices over which batches are spread.
    """

    def rows(params, batch):
        return features(params, batch), batch['label'], batch['valid']

    encode = jax.jit(mesh_lib.on_mesh(rows, mesh), out_shardings=mesh_lib.replicated(mesh))

    def run(params: Any, batches: Iterable[Batch]) -> tuple[Features, Labels]:
        chunks = []
        for batch in batches:
            vectors, labels, valid = map(np.asarray, encode(params, batch))
            chunks.append((vectors[valid], labels[valid]))
        vectors, labels = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        if labels.min() < 0:
            raise UserError(
                'A probe needs labels, and these images have none: a folder needs train/<class>/ '
                'and val/<class>/.'
            )
        return vectors, labels

    return run
