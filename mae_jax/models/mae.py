"""The masked autoencoder: an encoder of the visible patches, a small decoder of all of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mae_jax.models.dense import Dense
from mae_jax.models.positions import sincos_2d
from mae_jax.models.transformer import LayerNorm, Transformer
from mae_jax.models.vit import Encoder, check_width
from mae_jax.patches import grid_size, patchify
from mae_jax.pretext.masking import draw_noise, masking_from_noise, num_kept
from mae_jax.pretext.targets import get_target


class MAEOutput(NamedTuple):
    """What a forward pass gives."""

    loss: jax.Array
    """float32 scalar: mean squared error over the hidden patches of the whole batch."""
    prediction: jax.Array
    """float32 [B, N, P*P*C], in the space of the target."""
    mask: jax.Array
    """bool [B, N], True where a patch was hidden."""


def reconstruction_loss(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean squared error of the hidden patches, sum(error * mask) / sum(mask), in float32.

    Args:
      prediction, target: [B, N, P*P*C].
      mask: bool [B, N], True where a patch is hidden.
    """
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    return jnp.sum(error * mask) / jnp.sum(mask, dtype=jnp.float32)


class Decoder(nn.Module):
    """Tokens of the visible patches to a prediction for every patch (section 3, "MAE decoder")."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False

    @nn.compact
    def __call__(
        self, tokens: jax.Array, ids_restore: jax.Array, grid: tuple[int, int], patch_dim: int
    ) -> jax.Array:
        """Predicts each patch.

        Args:
          tokens: [B, 1 + K, D] of the encoder, the cls token first.
          ids_restore: int [B, N], of `Masking`.
          grid: rows and columns of patches, N in all.
          patch_dim: numbers to predict for a patch, P*P*C.

        Returns:
          float32 [B, N, patch_dim].
        """
        check_width(self.width, self.heads, 'decoder_')
        batch, num_patches = ids_restore.shape
        tokens = Dense(self.width, dtype=self.dtype, name='embed')(tokens)
        mask_token = self.param('mask_token', nn.initializers.normal(0.02), (1, 1, self.width))
        num_hidden = num_patches + 1 - tokens.shape[1]
        hidden = jnp.broadcast_to(mask_token, (batch, num_hidden, self.width))
        shuffled = jnp.concatenate([tokens[:, 1:], hidden.astype(tokens.dtype)], axis=1)
        patches = jnp.take_along_axis(shuffled, ids_restore[..., None], axis=1)
        tokens = jnp.concatenate([tokens[:, :1], patches], axis=1)
        tokens += self.param('pos_embed', lambda _: jnp.asarray(sincos_2d(self.width, grid)))
        blocks = Transformer(
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.dtype,
            self.remat,
            self.scan,
            name='blocks',
        )
        tokens = LayerNorm(dtype=self.dtype, name='norm')(blocks(tokens))
        head = Dense(patch_dim, dtype=self.dtype, name='head')
        return head(tokens[:, 1:]).astype(jnp.float32)


class MAE(nn.Module):
    """Masked autoencoder (paper, section 3); parameters are {'encoder': ..., 'decoder': ...}.

    The parameters' shapes follow from the images that `init` is given. The two position tables
    (`pos_embed`) are parameters like others here: it is the optimiser that leaves them alone.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.75
    mask_strategy: str = 'random'
    target: str = 'normalized_pixel'
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False

    def setup(self):
        options = dict(dtype=self.dtype, remat=self.remat, scan=self.scan)
        self.encoder = Encoder(self.patch_size, self.width, self.depth, self.heads, **options)
        self.decoder = Decoder(
            self.decoder_width, self.decoder_depth, self.decoder_heads, **options
        )

    def __call__(self, images: jax.Array, noise: jax.Array | None = None) -> MAEOutput:
        """Hides patches, and predicts them.

        Args:
          images: float [B, H, W, C], normalised.
          noise: float [B, N], smallest kept; None draws it from the 'mask' key of `rngs`.

        Raises:
          UserError: a patch size, width, mask ratio or name that does not work, naming its field.
        """
        grid = grid_size(images.shape[1:3], self.patch_size)
        patches = patchify(images.astype(jnp.float32), self.patch_size)
        batch, num_patches, patch_dim = patches.shape
        kept = num_kept(num_patches, self.mask_ratio)
        target = get_target(self.target)(patches)
        if noise is None:
            noise = draw_noise(self.make_rng('mask'), batch, num_patches, self.mask_strategy)
        masking = masking_from_noise(noise, kept)
        tokens = self.encoder(images, masking.ids_keep)
        prediction = self.decoder(tokens, masking.ids_restore, grid, patch_dim)
        loss = reconstruction_loss(prediction, target, masking.mask)
        return MAEOutput(loss, prediction, masking.mask)
