"""A config -> its task: what is learned, and by which model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mae_jax.config.model import image_size, make_architecture, make_encoder, statistics
from mae_jax.errors import UserError
from mae_jax.models.classifier import POOLS
from mae_jax.models.patches import grid_size
from mae_jax.models.vit import Encoder
from mae_jax.tasks.preprocess import normalize
from mae_jax.training.task import Batch


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """Images -> one vector each. Mean, std and scale are those of `normalize`."""

    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    pool: str = 'mean'

    def __post_init__(self):
        if self.pool not in POOLS:
            raise UserError(f"pool='{self.pool}' is unknown: choose {' or '.join(POOLS)}.")

    def features(self, params: Any, batch: Batch) -> jax.Array:
        """Mean patch token or cls token after the final norm, float32 [B,D].

        `params` holds the encoder's under 'encoder'. One that was fine-tuned with mean pooling has
        no final norm: its tokens are taken as they are.
        """
        images = normalize(batch['image'], scale=self.scale, mean=self.mean, std=self.std)
        tokens = self.encoder.apply(
            {'params': params['encoder']}, images, final_norm='norm' in params['encoder']
        ).astype(jnp.float32)
        return tokens[:, 1:].mean(axis=1) if self.pool == 'mean' else tokens[:, 0]


def make_frozen_encoder(config: ml_collections.ConfigDict, pool: str = 'mean') -> FrozenEncoder:
    """The encoder of a config, for features alone."""
    grid_size(image_size(config), make_architecture(config.model)['patch_size'])
    return FrozenEncoder(make_encoder(config), pool=pool, **statistics(config))
