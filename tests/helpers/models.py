"""Models made without a config."""

import dataclasses

import jax
import numpy as np

from helpers.photographs import PATCH, SHAPE
from mae_jax.models.mae import MAE
from mae_jax.models.vit import Encoder
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


def make_random_encoder(depth: int, **fields):
    """Makes (encoder, random parameters); all blocks but the last are the identity."""
    encoder = Encoder(PATCH, width=8, depth=depth, heads=2, **fields)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, *SHAPE), np.float32))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes['params'])
    for i in range(depth - 1):
        block = params['blocks'][f'block_{i}']
        for layer in (block['attention']['proj'], block['mlp']['fc2']):
            layer.update({name: np.zeros_like(x) for name, x in layer.items()})
    return encoder, params
