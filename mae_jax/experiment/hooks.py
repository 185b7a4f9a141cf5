"""What a run does beside its steps: evaluation, pictures, and what its frozen encoder is worth."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.evaluation.features import Batch, Batches, Encode
from mae_jax.evaluation.probe import accuracies
from mae_jax.tasks.preprocess import normalize
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.loop import Hook
from mae_jax.training.state import TrainState
from mae_jax.visualization.drawing import grid
from mae_jax.visualization.reconstruction import reconstruction_columns


def evaluation_hook(
    evaluate: Callable[[TrainState], dict[str, np.ndarray]], *, every_steps: int
) -> Hook:
    """Logs `eval/<name>`: means over every valid row of what `make_evaluate`'s function sums."""

    def run(step: int, state: TrainState) -> dict[str, float]:
        sums = evaluate(state)
        count = sums.pop('count')
        return {f'eval/{name}': float(s / count) for name, s in sums.items() if not s.ndim}

    return Hook(every_steps, run)


def picture_hook(
    task: Pretrain,
    mesh: Mesh,
    batch: Batch,
    show: Callable[[int, str, np.ndarray], None],
    *,
    every_steps: int,
) -> Hook:
    """Shows `reconstruction_columns` for the images of `batch`, the same each time."""
    whole = mesh_lib.replicated(mesh)
    images = normalize(batch['image'], scale=task.scale, mean=task.mean, std=task.std)

    def reconstruct(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        output = task.reconstruct(params, batch)
        variables = {'params': params}
        return task.model.apply(variables, output.prediction, images, method='pixels'), output.mask

    reconstruct = jax.jit(reconstruct, out_shardings=whole)

    def run(step: int, state: TrainState) -> dict[str, float]:
        pixels, mask = reconstruct(state.params, jax.device_put(batch, whole))
        columns = reconstruction_columns(
            np.asarray(images),
            np.asarray(pixels),
            np.asarray(mask),
            patch_size=task.model.patch_size,
            mean=task.mean,
            std=task.std,
        )
        show(step, 'reconstruction', grid(columns))
        return {}

    return Hook(every_steps, run)


def probe_hook(
    encode: Encode,
    train: Batches,
    test: Batches,
    *,
    every_steps: int,
) -> Hook:
    """Logs `probe/knn` and `probe/linear` (ridge) of the encoder as it then is."""

    def run(step: int, state: TrainState) -> dict[str, float]:
        params = {'encoder': state.params['encoder']}
        data = [*encode(params, train()), *encode(params, test())]
        if jax.process_index():
            return {}  # one process logs
        neighbours = min(20, len(data[0]))
        found = accuracies(*data, neighbours=neighbours, linear='ridge', shots=())
        return {f'probe/{name}': value for name, value in found.items()}

    return Hook(every_steps, run)
