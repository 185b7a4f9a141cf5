"""What a run does beside its steps: evaluation, pictures, and what its frozen encoder is worth."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.errors import UserError
from mae_jax.training import sharding as mesh_lib

Batch = dict[str, np.ndarray]
Passes = Callable[[], Iterable[Batch]]
"""Starts a pass over evaluation batches: this process's rows of each."""
Encode = Callable[[Any, Iterable[Batch]], tuple[np.ndarray, np.ndarray]]
"""(parameters, batches) -> features [n,D] and labels [n] of every valid row."""


def make_encode(features: Callable[[Any, Batch], jax.Array], mesh: Mesh) -> Encode:
    """Makes the function that runs `features` over a split; every process gets all of it.

    That function raises a UserError for an image without a label.
    """

    def rows(params, batch):
        return features(params, batch), batch['label'], batch['valid']

    encode = jax.jit(rows, out_shardings=mesh_lib.replicated(mesh))

    def run(params: Any, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for batch in batches:
            batch = mesh_lib.put_batch(mesh, batch)
            vectors, labels, valid = map(np.asarray, encode(params, batch))
            found.append((vectors[valid], labels[valid]))
        vectors, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if labels.min() < 0:
            raise UserError(
                'A probe needs labels, and these images have none: a folder needs train/<class>/ '
                'and val/<class>/.'
            )
        return vectors, labels

    return run
