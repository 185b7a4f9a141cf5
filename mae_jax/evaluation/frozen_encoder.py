"""An encoder as a function from images to features, never trained."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float32

from mae_jax.config.model import image_size, make_architecture, make_encoder, statistics
from mae_jax.errors import UserError
from mae_jax.models.classifier import POOLS
from mae_jax.models.patches import grid_size
from mae_jax.models.vit import Encoder
from mae_jax.tasks.preprocess import normalize
from mae_jax.training.task import Batch


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """Computes one vector for each image.

    Attributes:
      mean, std, scale: as of `normalize`.
      pool: 'mean' of the patch tokens, or the 'cls' token.
    """

    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    pool: str = 'mean'

    def __post_init__(self):
        if self.pool not in POOLS:
            raise UserError(f"pool='{self.pool}' is unknown: choose {' or '.join(POOLS)}.")
        if self.pool == 'cls' and not self.encoder.options.cls_token:
            raise UserError("pool='cls' needs a cls token: choose pool=mean.")

    def features(self, params: Any, batch: Batch) -> Float32[Array, 'B D']:
        """Computes the mean patch token or the cls token, after the final norm.

        An encoder that was fine-tuned with mean pooling has no final norm; its tokens are pooled
        without one.

        Args:
          params: those of the encoder under 'encoder'.
          batch: 'image', as loaded.
        """
        images = normalize(batch['image'], scale=self.scale, mean=self.mean, std=self.std)
        tokens = self.encoder.apply(
            {'params': params['encoder']}, images, final_norm='norm' in params['encoder']
        ).astype(jnp.float32)
        if self.pool == 'cls':
            return tokens[:, 0]
        return tokens[:, int(self.encoder.options.cls_token) :].mean(axis=1)


def make_frozen_encoder(config: ml_collections.ConfigDict, pool: str = 'mean') -> FrozenEncoder:
    """Makes the encoder of a config.

    Raises:
      UserError: the patch size does not divide the image, or another field does not work.
    """
    grid_size(image_size(config), make_architecture(config.model)['patch_size'])
    return FrozenEncoder(make_encoder(config), pool=pool, **statistics(config))
