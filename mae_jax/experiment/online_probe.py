"""Follows what the encoder is worth while it trains, and compares it with the untrained one."""

from collections.abc import Callable
from typing import Any

import jax

from mae_jax.config.data import check_classes, eval_batch_size, eval_passes
from mae_jax.errors import UserError
from mae_jax.evaluation.encode import Encode, Passes, make_encode
from mae_jax.evaluation.frozen_encoder import make_frozen_encoder
from mae_jax.evaluation.probe import accuracies
from mae_jax.experiment.cached_features import encode_split
from mae_jax.experiment.setup import Setup
from mae_jax.runtime.processes import on_first
from mae_jax.training.loop import Hook
from mae_jax.training.state import TrainState


def make_online_probe(setup: Setup, alive: Callable[[], None]) -> Hook:
    """Makes the hook that logs k-NN and linear accuracy on a share of the labelled images.

    It reads the state and draws no random numbers. `alive` is called at every batch.
    """
    config, mesh, fields = setup.config, setup.mesh, setup.task.online_probe
    if not 0 < fields.share <= 1:
        raise UserError(f'online_probe.share={fields.share} must be above 0 and at most 1.')
    if not setup.source.num_classes:
        raise UserError(
            'online_probe needs labels, and these images have none: set '
            'online_probe.every_epochs=0.'
        )
    check_classes(setup.source, setup.held_out)
    counts = [max(round(fields.share * len(s)), 1) for s in (setup.source, setup.held_out)]
    batch_size = eval_batch_size(config, mesh, max(counts))
    train, test = (
        eval_passes(config, source, mesh, batch_size, count, alive)
        for source, count in zip((setup.source, setup.held_out), counts, strict=True)
    )
    return probe_hook(
        make_encode(make_frozen_encoder(config).features, mesh),
        train,
        test,
        every_steps=max(round(fields.every_epochs * setup.length.steps_per_epoch), 1),
    )


def probe_hook(encode: Encode, train: Passes, test: Passes, *, every_steps: int) -> Hook:
    """Logs `probe/knn` and `probe/linear` (ridge) of the current encoder."""

    def run(step: int, state: TrainState) -> dict[str, float]:
        params = {'encoder': state.params['encoder']}
        data = [*encode(params, train()), *encode(params, test())]
        if jax.process_index():
            return {}  # one process logs
        neighbours = min(20, len(data[0]))
        values = accuracies(*data, neighbours=neighbours, linear='ridge', shots=())
        return {f'probe/{name}': value for name, value in values.items()}

    return Hook(every_steps, run)


def encoder_accuracies(setup: Setup, params: Any) -> dict[str, float]:
    """Probes an encoder on the run's training and held-out data; {} except in process 0."""
    config, mesh = setup.config, setup.mesh
    batch_size = eval_batch_size(config, mesh, len(setup.source))
    encode = make_encode(make_frozen_encoder(config).features, mesh)
    params = {'encoder': params['encoder']}
    splits = [
        encode_split(encode, params, config, source, mesh, batch_size)
        for source in (setup.source, setup.held_out)
    ]
    return on_first(lambda: accuracies(*(array for split in splits for array in split))) or {}
