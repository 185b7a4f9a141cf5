"""The masked autoencoder: an encoder of the visible patches, a small decoder of all of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int, Shaped

from mae_jax.errors import UserError
from mae_jax.models.dense import Dense
from mae_jax.models.norm import NORM_EPS, LayerNorm
from mae_jax.models.patches import grid_size, patchify
from mae_jax.models.positions import sincos_2d
from mae_jax.models.transformer import Transformer, stream_dtype
from mae_jax.models.unshuffle import unshuffle
from mae_jax.models.vit import Encoder, check_width


class MAEOutput(NamedTuple):
    """The result of a forward pass."""

    loss: Float32[Array, '']
    """Mean of `errors` over the patches of the whole batch that count, the hidden ones or all
    (`Target.loss_on`)."""
    prediction: Float32[Array, 'B N M']
    """M values a patch, in the space of the target: V pixels, PCA coefficients, logits of codes."""
    mask: Bool[Array, 'B N']
    """True where a patch was hidden."""
    errors: Float32[Array, 'B N']
    """Of each patch, whether it counts or not (`Target.errors`)."""


class Decoder(nn.Module):
    """Tokens of the visible patches to a prediction for every patch (section 3, "MAE decoder")."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False
    attention: str = 'plain'
    norm_eps: float = NORM_EPS
    residual_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[ArrayLike, 'B T D'],
        order: tuple[Int[ArrayLike, 'B K'], Int[ArrayLike, 'B N']] | None,
        grid: tuple[int, int],
        prediction_size: int,
    ) -> Float32[Array, 'B N {prediction_size}']:
        """Predicts each patch.

        Args:
          tokens: of the encoder, the cls token first, then the K visible patches.
          order: `ids_keep` and `ids_restore` of `Masking`; None where the encoder returned a token
            for every patch, in the order of the image.
          grid: rows and columns of patches, N in all.
          prediction_size: number of values to predict for a patch.

        Raises:
          UserError: a negative depth, or a width that the heads or 4 do not divide.
        """
        check_width(self.width, self.heads, 'decoder_')
        if self.depth < 0:
            raise UserError(f'model.decoder_depth={self.depth} must be at least 0, a linear head.')
        tokens = Dense(self.width, self.dtype, stream_dtype(self), name='embed')(tokens)
        if order is not None:
            tokens = self._add_hidden(tokens, *order)
        tokens += self.param('pos_embed', lambda _: jnp.asarray(sincos_2d(self.width, grid)))
        blocks = Transformer(
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.dtype,
            self.remat,
            self.scan,
            attention=self.attention,
            norm_eps=self.norm_eps,
            residual_dtype=self.residual_dtype,
            name='blocks',
        )
        norm = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm')
        tokens = norm(blocks(tokens))
        return Dense(prediction_size, self.dtype, jnp.float32, name='head')(tokens[:, 1:])

    def _add_hidden(
        self,
        tokens: Float[Array, 'B T D'],
        ids_keep: Int[ArrayLike, 'B K'],
        ids_restore: Int[ArrayLike, 'B N'],
    ) -> Float[Array, 'B N+1 D']:
        """Puts the patches in order, with a learned token for each that is hidden."""
        mask_token = self.param('mask_token', nn.initializers.normal(0.02), (1, 1, self.width))
        visible = unshuffle(tokens[:, 1:], ids_keep, ids_restore)
        # In float32 until here, and so is the sum of its gradient over all hidden patches.
        hidden = jnp.broadcast_to(mask_token, visible.shape).astype(tokens.dtype)
        is_hidden = (ids_restore >= ids_keep.shape[1])[..., None]
        return jnp.concatenate([tokens[:, :1], jnp.where(is_hidden, hidden, visible)], axis=1)


class FittedArrays(nn.Module):
    """Arrays that are fitted to the data, not trained; NaN until then, to teach nothing."""

    @nn.compact
    def __call__(
        self, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Float32[ArrayLike, '...']]:
        nan = nn.initializers.constant(jnp.nan)
        return {name: self.param(name, nan, shape) for name, shape in shapes.items()}


class MAE(nn.Module):
    """Masked autoencoder (paper, section 3); parameters are {'encoder': ..., 'decoder': ...}.

    The parameters' shapes follow from the images that `init` is given. The two position tables
    (`pos_embed`) and the fitted arrays of a target (under 'pca') are parameters too; the optimiser
    leaves them unchanged.

    Attributes:
      masking: how patches are hidden, a `mae_jax.pretext.masking.MaskingRule`.
      target: what is predicted, a `mae_jax.pretext.targets.Target`.
      encoder_mask_tokens: whether hidden patches go through the encoder too, as mask tokens
        (Table 1c). It then costs as much as for all patches, and the decoder has no mask token.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    masking: Any
    target: Any
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    encoder_mask_tokens: bool = False
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False
    attention: str = 'plain'
    norm_eps: float = NORM_EPS
    residual_dtype: Any = jnp.float32

    def setup(self):
        options = dict(dtype=self.dtype, remat=self.remat, scan=self.scan)
        options |= dict(attention=self.attention, norm_eps=self.norm_eps)
        options |= dict(residual_dtype=self.residual_dtype)
        self.encoder = Encoder(self.patch_size, self.width, self.depth, self.heads, **options)
        self.decoder = Decoder(
            self.decoder_width, self.decoder_depth, self.decoder_heads, **options
        )
        self.pca = FittedArrays()  # the name that checkpoints have

    def __call__(
        self,
        images: Float[ArrayLike, 'B H W C'],
        noise: Float[ArrayLike, 'B N'] | None = None,
        target: Shaped[ArrayLike, 'B N ...'] | None = None,
    ) -> MAEOutput:
        """Hides patches, and predicts them.

        Args:
          images: normalised.
          noise: the patches of smallest noise stay visible; None draws it from the 'mask' key of
            `rngs`.
          target: what to predict, where it is not computed from the patches: int [B, N] for
            tokens. Without it, loss and errors are then NaN.

        Raises:
          UserError: a patch size, width, mask ratio or name that does not work, naming its field.
        """
        grid = grid_size(images.shape[1:3], self.patch_size)
        patches = patchify(jnp.asarray(images, jnp.float32), self.patch_size)
        batch, _, patch_dim = patches.shape
        self.target.check(patch_dim)
        if noise is None:
            noise = self.masking.draw_noise(self.make_rng('mask'), batch, grid)
        masking = self.masking.mask(noise)
        if self.encoder_mask_tokens:
            tokens, order = self.encoder(images, mask=masking.mask), None
        else:
            tokens = self.encoder(images, masking.ids_keep)
            order = masking.ids_keep, masking.ids_restore
        size = self.target.prediction_size(patch_dim)
        prediction = self.decoder(tokens, order, grid, size)
        errors = self._errors(prediction, patches, target)
        loss = self.target.mean_error(errors, masking.mask)
        return MAEOutput(loss, prediction, masking.mask, errors)

    def pixels(
        self, prediction: Float[ArrayLike, 'B N M'], images: Float[ArrayLike, 'B H W C']
    ) -> Float32[ArrayLike, 'B N V']:
        """Converts a prediction to patches of normalised pixels.

        What the target leaves out is taken from the images: for normalised pixels, each patch's
        mean and deviation. For PCA coefficients, what further components would add is missing.

        Args:
          prediction: as of `MAEOutput`.
          images: normalised: the originals.

        Raises:
          UserError: the target has no pixels, such as tokens.
        """
        patches = patchify(jnp.asarray(images, jnp.float32), self.patch_size)
        return self.target.pixels(prediction, patches, self._fitted(patches))

    def _fitted(self, patches: Float32[Array, 'B N V']) -> dict[str, Float32[ArrayLike, '...']]:
        return self.pca(self.target.fitted_shapes(patches.shape[-1]))

    def _errors(
        self,
        prediction: Float32[Array, 'B N M'],
        patches: Float32[Array, 'B N V'],
        given: Shaped[ArrayLike, 'B N ...'] | None,
    ) -> Float32[Array, 'B N']:
        expected = self.target.from_patches(patches, self._fitted(patches))
        expected = given if expected is None else expected
        if expected is None:
            return jnp.full(prediction.shape[:2], jnp.nan)
        return self.target.errors(prediction, expected)
