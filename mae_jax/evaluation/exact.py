"""Evaluates every held-out example exactly once, whatever the batch and the number of devices."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from clu.metrics import Collection
from jax.sharding import Mesh

from mae_jax.evaluation.encode import Batch, Passes
from mae_jax.training.sharding import on_mesh, replicated
from mae_jax.training.state import TrainState, evaluation_params
from mae_jax.training.task import Task


def make_evaluate(task: Task, mesh: Mesh, passes: Passes, batch_size: int) -> Any:
    """Makes the function (state) -> metrics over every valid row, each counted once.

    Args:
      task: its `evaluate` collects the metrics of a batch.
      mesh: on whose devices the batches are evaluated.
      passes: starts a pass over all batches, which are on the devices of the mesh.
      batch_size: of the global batch.

    Returns:
      A function that returns a `clu.metrics.Collection` of sums in float64 and int64, on the host;
      or, where what the task collects has a method `on_host`, its results, merged.
    """
    collect = make_collect(task, mesh)

    def run(state: TrainState) -> Collection:
        return collect(evaluation_params(state), state.model_state, passes(), batch_size)

    return run


def make_collect(task: Task, mesh: Mesh) -> Callable[[Any, Any, Iterable[Batch], int], Collection]:
    """Makes the function (params, model_state, batches, batch_size) -> metrics of `make_evaluate`.

    It is compiled once for all sets of examples that it is called with.
    """
    evaluate = jax.jit(on_mesh(task.evaluate, mesh), out_shardings=replicated(mesh))

    def run(params: Any, model_state: Any, batches: Iterable[Batch], batch_size: int) -> Collection:
        total = pending = None
        for number, batch in enumerate(batches):
            first = jax.device_put(number * batch_size)
            metrics = evaluate(params, model_state, batch, first)
            total = merge(total, pending)  # one batch late: the device always has the next one
            pending = metrics
        return merge(total, pending)

    return run


def merge(total: Collection | None, metrics: Collection | None) -> Collection | None:
    """Adds the metrics of a batch to the sums on the host."""
    if metrics is None:
        return total
    own = hasattr(metrics, 'on_host')
    metrics = metrics.on_host() if own else jax.tree.map(_on_host, metrics)
    return metrics if total is None else total.merge(metrics)


def _on_host(array: jax.Array) -> np.ndarray:
    """Copies an array to the host, in a dtype in which sums over a data set are exact enough."""
    is_float = jax.numpy.issubdtype(array.dtype, jax.numpy.floating)
    return np.asarray(array, np.float64 if is_float else np.int64)


def count_examples(metrics: Collection) -> int:
    """Returns the number of examples: `examples`, or what the first metric averages over."""
    if hasattr(metrics, 'examples'):
        return metrics.examples
    return next(
        int(m.count) for m in vars(metrics).values() if np.ndim(getattr(m, 'count', [])) == 0
    )
