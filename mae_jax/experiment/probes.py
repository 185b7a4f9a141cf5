"""A frozen encoder over whole data sets: its k-NN and linear accuracy, features to learn from."""

from collections.abc import Callable
from typing import Any

from mae_jax.config.data import check_classes, eval_batch_size, eval_passes
from mae_jax.errors import UserError
from mae_jax.evaluation.features import make_encode
from mae_jax.evaluation.frozen_encoder import make_frozen_encoder
from mae_jax.evaluation.probe import accuracies
from mae_jax.experiment.build import Run
from mae_jax.experiment.cached_features import encode_split
from mae_jax.experiment.hooks import probe_hook
from mae_jax.runtime.processes import on_first
from mae_jax.training.loop import Hook


def make_online_probe(parts: Run, alive: Callable[[], None]) -> Hook:
    """k-NN and linear fit on a share of the labelled images; reads the state and draws nothing.

    `alive` is called at every batch.
    """
    config, mesh = parts.config, parts.mesh
    fields = config.online_probe
    if not 0 < fields.share <= 1:
        raise UserError(f'online_probe.share={fields.share} must be above 0 and at most 1.')
    if not parts.source.num_classes:
        raise UserError(
            'online_probe needs labels, and these images have none: set '
            'online_probe.every_epochs=0.'
        )
    check_classes(parts.source, parts.held_out)
    counts = [max(round(fields.share * len(s)), 1) for s in (parts.source, parts.held_out)]
    batch_size = eval_batch_size(config, mesh, max(counts))
    train, test = (
        eval_passes(config, source, mesh, batch_size, count, alive)
        for source, count in zip((parts.source, parts.held_out), counts, strict=True)
    )
    return probe_hook(
        make_encode(make_frozen_encoder(config).features, mesh),
        train,
        test,
        every_steps=max(round(fields.every_epochs * parts.length.steps_per_epoch), 1),
    )


def encoder_accuracies(parts: Run, params: Any) -> dict[str, float]:
    """Probes an encoder on the config's own train and held-out splits; {} but in process 0."""
    config, mesh = parts.config, parts.mesh
    batch_size = eval_batch_size(config, mesh, len(parts.source))
    encode = make_encode(make_frozen_encoder(config).features, mesh)
    params = {'encoder': params['encoder']}
    splits = [
        encode_split(encode, params, config, source, mesh, batch_size)
        for source in (parts.source, parts.held_out)
    ]
    found = on_first(lambda: accuracies(*(array for split in splits for array in split)))
    return found or {}
