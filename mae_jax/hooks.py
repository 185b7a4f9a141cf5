"""What a run does beside its steps: held-out loss, pictures, and the probe at its end."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax.reconstruct import picture
from mae_jax.tasks import probe
from mae_jax.tasks.preprocess import normalize
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tasks.task import Task
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.loop import Hook
from mae_jax.training.state import TrainState

Batch = dict[str, np.ndarray]


def evaluation_hook(
    task: Task,
    mesh: Mesh,
    batches: Callable[[], Iterable[Batch]],
    *,
    batch_size: int,
    every_steps: int,
) -> Hook:
    """Logs `eval/<name>`: the mean over every valid row that `batches()` gives, once each."""
    evaluate = jax.jit(task.evaluate, out_shardings=mesh_lib.replicated(mesh))

    def run(step: int, state: TrainState) -> dict[str, float]:
        totals = []
        for number, batch in enumerate(batches()):
            batch = mesh_lib.put_batch(mesh, batch, batch_size)
            first = number * batch_size
            totals.append(evaluate(state.params, state.model_state, batch, first))
        sums = {name: sum(float(total[name]) for total in totals) for name in totals[0]}
        count = sums.pop('count')
        return {f'eval/{name}': value / count for name, value in sums.items()}

    return Hook(every_steps, run)


def picture_hook(
    task: Pretrain,
    mesh: Mesh,
    batch: Batch,
    show: Callable[[int, str, np.ndarray], None],
    *,
    every_steps: int,
) -> Hook:
    """Shows masked | reconstructed | original for the images of `batch`, the same each time."""
    whole = mesh_lib.replicated(mesh)
    reconstruct = jax.jit(task.reconstruct, out_shardings=whole)
    images = normalize(batch['image'], scale=task.scale, mean=task.mean, std=task.std)

    def run(step: int, state: TrainState) -> dict[str, float]:
        output = reconstruct(state.params, jax.device_put(batch, whole))
        grid = picture(
            np.asarray(images),
            np.asarray(output.prediction),
            np.asarray(output.mask),
            patch_size=task.model.patch_size,
            normalized_target=task.model.target == 'normalized_pixel',
            mean=task.mean,
            std=task.std,
        )
        show(step, 'reconstruction', grid)
        return {}

    return Hook(every_steps, run)


def probe_accuracies(
    task: Pretrain, params: Any, train: Iterable[Batch], test: Iterable[Batch]
) -> dict[str, float]:
    """k-NN, linear and few-label accuracy of the encoder in `params`, frozen; see `tasks.probe`."""

    def encode(batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        encoded = []
        for batch in batches:
            images = normalize(batch['image'], scale=task.scale, mean=task.mean, std=task.std)
            valid = batch['valid']
            encoded.append((encoder(params['encoder'], images)[valid], batch['label'][valid]))
        features, labels = zip(*encoded, strict=True)
        return np.concatenate(features), np.concatenate(labels)

    encoder = probe.feature_function(task.model)
    return probe.accuracies(*encode(train), *encode(test))
