"""Autoencoders made from the fields of a config, without a config."""

import dataclasses

from mae_jax.models.mae import MAE
from mae_jax.pretext.masking import MaskingRule
from mae_jax.pretext.targets import make_target


def make_mae(
    *,
    mask_ratio: float = 0.75,
    strategy: str = 'random',
    target: str = 'normalized_pixel',
    target_fields: dict | None = None,
    **fields,
) -> MAE:
    """Makes an `MAE` from a mask ratio, a strategy, fields of `config.target` and of `MAE`."""
    target = make_target({'name': target, **(target_fields or {})})
    masking = MaskingRule(mask_ratio, strategy, may_hide_none=target.loss_on == 'all')
    return MAE(masking=masking, target=target, **fields)


def with_ratio(model: MAE, ratio: float) -> MAE:
    """Returns the model with another mask ratio."""
    return model.clone(masking=dataclasses.replace(model.masking, ratio=ratio))
