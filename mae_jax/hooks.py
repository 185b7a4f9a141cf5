"""What a run does beside its steps: evaluation, pictures, and what its frozen encoder is worth."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.errors import UserError
from mae_jax.pictures import grid
from mae_jax.reconstruct import reconstruction_columns
from mae_jax.tasks import probe
from mae_jax.tasks.preprocess import normalize
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tasks.task import Task
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.loop import Hook
from mae_jax.training.state import TrainState, evaluation_params

Batch = dict[str, np.ndarray]
Batches = Callable[[], Iterable[Batch]]
"""Starts a pass over evaluation batches: this process's rows of each."""
Encode = Callable[[Any, Iterable[Batch]], tuple[np.ndarray, np.ndarray]]
"""(parameters, batches) -> features [n,D] and labels [n] of every valid row."""


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
        found = probe.accuracies(*data, neighbours=neighbours, linear='ridge', shots=())
        return {f'probe/{name}': value for name, value in found.items()}

    return Hook(every_steps, run)
