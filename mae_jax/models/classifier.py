"""The classifier: an encoder of whole images, pooling, and a linear head.

It serves fine-tuning, partial fine-tuning and training from scratch (mean pooling) as well as the
linear probe (cls token and batch norm); they differ in what is trained, which the task decides.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.errors import UserError
from mae_jax.models.batch_norm import BatchNorm
from mae_jax.models.dense import Dense
from mae_jax.models.norm import NORM_EPS, LayerNorm
from mae_jax.models.options import EncoderOptions
from mae_jax.models.vit import Encoder

POOLS = ('mean', 'cls')


def drop_path_scale(
    noise: Float32[ArrayLike, 'B L 2'], drop_path: float
) -> Float32[Array, 'B L 2']:
    """Computes what stochastic depth multiplies each of a block's two branches by.

    The drop rate rises linearly over the L blocks, from 0 to `drop_path`. A dropped branch is
    multiplied by 0, a kept one by 1 / (1 - rate), which keeps its expectation.

    Args:
      noise: uniform in [0, 1), for attention and MLP; a branch below its rate is dropped.
      drop_path: rate of the last block.
    """
    rates = np.linspace(0, drop_path, noise.shape[1])[:, None]
    return jnp.where(noise < rates, 0, 1 / (1 - rates)).astype(jnp.float32)


class Classifier(nn.Module):
    """Encoder, pooling and head; parameters are {'encoder', 'fc_norm' (mean pooling), 'head'}.

    The encoder's parameters are those of `MAE`, under the same names, except for the final norm,
    which mean pooling replaces by `fc_norm`.

    Attributes:
      pool: 'mean' of the patch tokens, or the 'cls' token.
      batch_norm: whether features are normalised over the batch, with running statistics in the
        collection 'batch_stats'.
      head_std: standard deviation of the head's initial kernel.
      drop_path: stochastic depth's rate of the last block.
      remat, scan, frozen_blocks, attention, norm_eps, residual_dtype: as of `Transformer`; norm_eps
        is also that of `fc_norm`.
      options: as of `Encoder`.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    num_classes: int
    pool: str = 'mean'
    batch_norm: bool = False
    head_std: float = 2e-5
    drop_path: float = 0.0
    frozen_blocks: int = 0
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False
    attention: str = 'plain'
    norm_eps: float = NORM_EPS
    residual_dtype: Any = jnp.float32
    options: EncoderOptions = EncoderOptions()

    def setup(self):
        if self.pool not in POOLS:
            raise UserError(f'model.pool={self.pool!r} is unknown: use {" | ".join(POOLS)}.')
        if self.pool == 'cls' and not self.options.cls_token:
            raise UserError("model.pool='cls' needs a cls token: choose model.pool=mean.")
        if not 0 <= self.drop_path < 1:
            raise UserError(f'model.drop_path={self.drop_path} must be at least 0 and below 1.')
        options = dict(dtype=self.dtype, remat=self.remat, scan=self.scan)
        options |= dict(frozen_blocks=self.frozen_blocks, attention=self.attention)
        options |= dict(norm_eps=self.norm_eps, residual_dtype=self.residual_dtype)
        options |= dict(options=self.options)
        self.encoder = Encoder(self.patch_size, self.width, self.depth, self.heads, **options)
        if self.pool == 'mean':
            self.fc_norm = LayerNorm(epsilon=self.norm_eps)
        if self.batch_norm:
            self.feature_norm = BatchNorm()
        self.head = Dense(self.num_classes, kernel_init=nn.initializers.normal(self.head_std))

    def features(
        self,
        images: Float[ArrayLike, 'B H W C'],
        path_noise: Float32[ArrayLike, 'B {self.depth} 2'] | None = None,
    ) -> Float32[Array, 'B D']:
        """Computes the head's input, before any batch norm.

        Mean pooling: the mean of the patch tokens before the encoder's final norm, then `fc_norm`.
        Cls pooling: the cls token after the encoder's final norm.

        Args:
          images: normalised.
          path_noise: uniform in [0, 1), by which branches are dropped (`drop_path_scale`); None
            drops nothing.

        Raises:
          UserError: `pool` or another field does not work; the message names it.
        """
        scale = None
        if path_noise is not None and self.drop_path > 0:
            scale = drop_path_scale(path_noise, self.drop_path)
        tokens = self.encoder(images, final_norm=self.pool == 'cls', branch_scale=scale)
        if self.pool == 'cls':
            return tokens[:, 0].astype(jnp.float32)
        patches = tokens[:, int(self.options.cls_token) :]
        return self.fc_norm(patches.astype(jnp.float32).mean(axis=1))

    def classify(
        self, features: Float32[ArrayLike, 'B D'], train: bool
    ) -> Float32[Array, 'B {self.num_classes}']:
        """Computes logits from features.

        With `batch_norm`, `train` normalises by this batch and updates 'batch_stats', which must
        then be mutable; without `train` the running statistics are used.
        """
        if self.batch_norm:
            features = self.feature_norm(features, train)
        return self.head(features)

    def __call__(
        self,
        images: Float[ArrayLike, 'B H W C'],
        path_noise: Float32[ArrayLike, 'B {self.depth} 2'] | None = None,
        train: bool = False,
    ) -> Float32[Array, 'B {self.num_classes}']:
        """Computes the logits of images: `classify` of `features`."""
        return self.classify(self.features(images, path_noise), train)
