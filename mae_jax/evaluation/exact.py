"""What a run does beside its steps: evaluation, pictures, and what its frozen encoder is worth."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.evaluation.features import Batches
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.state import TrainState, evaluation_params
from mae_jax.training.task import Task


def make_evaluate(
    task: Task, mesh: Mesh, batches: Batches, batch_size: int
) -> Callable[[TrainState], dict[str, np.ndarray]]:
    """A function of the state: sums of `task.evaluate` over every valid row, once each, float64."""
    evaluate = jax.jit(task.evaluate, out_shardings=mesh_lib.replicated(mesh))

    def run(state: TrainState) -> dict[str, np.ndarray]:
        params, sums, ahead = evaluation_params(state), {}, {}
        for number, batch in enumerate(batches()):
            task.check(batch)
            batch = mesh_lib.put_batch(mesh, batch)
            found = evaluate(params, state.model_state, batch, number * batch_size)
            _add(sums, ahead)  # one batch late, so that the device always has the next one
            ahead = found
        return _add(sums, ahead)

    return run


def _add(sums: dict[str, np.ndarray], found: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    for name, value in found.items():
        sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
    return sums
