"""The Vision Transformer: its variants, and the encoder that MAE and classifiers share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int

from mae_jax.errors import UserError
from mae_jax.models.dense import Dense
from mae_jax.models.norm import NORM_EPS, LayerNorm
from mae_jax.models.options import EncoderOptions
from mae_jax.models.patches import grid_size, patchify
from mae_jax.models.positions import sincos_2d
from mae_jax.models.relative import relative_rows
from mae_jax.models.transformer import Transformer, stream_dtype

VARIANTS = {
    'vit_tiny': dict(width=192, depth=12, heads=3, patch_size=16),
    'vit_small': dict(width=384, depth=12, heads=6, patch_size=16),
    'vit_base': dict(width=768, depth=12, heads=12, patch_size=16),
    'vit_large': dict(width=1024, depth=24, heads=16, patch_size=16),
    'vit_huge': dict(width=1280, depth=32, heads=16, patch_size=14),
}


def architecture(
    variant: str,
    *,
    patch_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> dict[str, int]:
    """Returns {width, depth, heads, patch_size} of a variant, with the sizes given replaced.

    Raises:
      UserError: the variant is unknown, or 4 or the heads do not divide the width.
    """
    if variant not in VARIANTS:
        raise UserError(f'model.variant={variant!r} is unknown: use {" | ".join(VARIANTS)}.')
    given = dict(patch_size=patch_size, width=width, depth=depth, heads=heads)
    arch = VARIANTS[variant] | {name: n for name, n in given.items() if n is not None}
    for name, n in arch.items():
        if n < 1:
            raise UserError(f'model.{name}={n} must be at least 1.')
    check_width(arch['width'], arch['heads'])
    return arch


def check_width(width: int, heads: int, prefix: str = '') -> None:
    """Raises a UserError for a width that 4 (for the positions) or the heads do not divide."""
    if heads < 1 or width % heads or width % 4:
        raise UserError(
            f'model.{prefix}width={width} with model.{prefix}heads={heads} does not work: '
            'choose a width that both 4 and the number of heads divide.'
        )


def _conv_bias(fan_in: int) -> nn.initializers.Initializer:
    """Initialises from U(+-1/sqrt(fan_in)), as PyTorch's Conv2d does and thus the original."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Encoder(nn.Module):
    """Images to tokens, computed for the visible patches alone (paper, section 3, "MAE encoder").

    Attributes:
      has_norm: whether there is a final norm; fine-tuning with mean pooling removes it.
      remat, scan, frozen_blocks, attention, norm_eps, residual_dtype: as of `Transformer`.
      options: what the encoder has beside the original's, or lacks.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False
    frozen_blocks: int = 0
    has_norm: bool = True
    attention: str = 'plain'
    norm_eps: float = NORM_EPS
    residual_dtype: Any = jnp.float32
    options: EncoderOptions = EncoderOptions()

    @nn.compact
    def __call__(
        self,
        images: Float[ArrayLike, 'B H W C'],
        ids_keep: Int[ArrayLike, 'B K'] | None = None,
        final_norm: bool = True,
        branch_scale: Float32[ArrayLike, 'B {self.depth} 2'] | None = None,
        blocks: Sequence[int] | None = None,
        mask: Bool[ArrayLike, 'B N'] | None = None,
    ) -> Float[Array, 'B T D'] | list[Float[Array, 'B T D']]:
        """Encodes images.

        Args:
          images: normalised.
          ids_keep: the patches to encode; None encodes all N.
          final_norm: False returns the tokens before the final norm, in the dtype of the residual
            stream, for mean pooling, which has its own.
          branch_scale: what each block's attention and MLP branch is multiplied by before it is
            added; None multiplies nothing.
          blocks: return the tokens after each of these, -1 being the last, instead of after all;
            the final norm is applied to each.
          mask: True where a learned mask token replaces a patch (Table 1c); it has a parameter
            if `init` was given a mask.

        Returns:
          T = 1 + K tokens of `dtype`, the cls token first if there is one; with `blocks`, a list of
          such arrays.

        Raises:
          UserError: `patch_size` does not divide the image, or the heads or 4 the width, there are
            fewer blocks than `frozen_blocks`, or `options` do not go together, or with `ids_keep`.
        """
        check_width(self.width, self.heads)
        self.options.check(self.depth)
        if ids_keep is not None and self.options.needs_whole_images:
            raise UserError(
                'Relative positions and windows are for whole images, and patches are hidden: '
                'leave model.relative_positions and model.window unset.'
            )
        grid = grid_size(images.shape[1:3], self.patch_size)
        patches = patchify(images, self.patch_size)
        # Before the projection: hidden patches cost nothing but this gather.
        if ids_keep is not None:
            patches = jnp.take_along_axis(patches, ids_keep[..., None], axis=1)
        of_cls, of_patches = self._positions(grid, ids_keep)
        bias_init = _conv_bias(patches.shape[-1])
        stream = stream_dtype(self)
        embed = Dense(self.width, self.dtype, stream, bias_init=bias_init, name='patch_embed')
        cls = self._cls_token(of_cls, images.shape[0])
        embedded = embed(patches)
        if mask is not None:
            mask_token = self.param('mask_token', nn.initializers.normal(0.02), (1, 1, self.width))
            embedded = jnp.where(mask[..., None], mask_token.astype(stream), embedded)
        tokens = jnp.concatenate([*cls, embedded + of_patches], axis=1)
        transformer = Transformer(
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.dtype,
            self.remat,
            self.scan,
            self.frozen_blocks,
            self.attention,
            self.norm_eps,
            self.residual_dtype,
            self.options,
            grid,
            name='blocks',
        )
        tokens = transformer(tokens, branch_scale, blocks)
        if not final_norm:
            return tokens
        if not self.has_norm:
            return jax.tree.map(lambda x: x.astype(self.dtype), tokens)
        norm = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm')
        return jax.tree.map(norm, tokens)

    def _positions(
        self, grid: tuple[int, int], ids_keep: Int[ArrayLike, 'B K'] | None
    ) -> tuple[ArrayLike, ArrayLike]:
        """Returns the positions of the cls token and of the patches; zeros where there are none."""
        if not self.options.absolute_positions:
            return 0.0, 0.0
        first = int(self.options.cls_token)
        initial = sincos_2d(self.width, grid, self.options.cls_token)
        table = self.param('pos_embed', lambda _: jnp.asarray(initial))
        of_patches, of_cls = table[:, first:], table[:, :first]
        if ids_keep is not None:
            of_patches = jnp.take(of_patches[0], ids_keep, axis=0)
        return of_cls, of_patches

    def _cls_token(self, position: ArrayLike, batch: Any) -> list[Float32[Array, 'B 1 D']]:
        """Returns the cls token of each of `batch` images with its position, or nothing.

        `batch` may be a symbol, in a function that is exported.
        """
        if not self.options.cls_token:
            return []
        cls = self.param('cls_token', nn.initializers.normal(0.02), (1, 1, self.width))
        return [jnp.broadcast_to(cls + position, (batch, 1, self.width))]

    def features(
        self,
        images: Float[ArrayLike, 'B H W C'],
        output: str = 'tokens',
        blocks: Sequence[int] | int | None = None,
    ) -> Float[Array, 'B ...'] | list[Float[Array, 'B ...']]:
        """Computes the features that a model of one's own starts from.

            encoder.apply({'params': params}, images, method='features', output='map')

        Args:
          images: normalised.
          output: 'tokens' [B, 1 + N, D], the cls token first, if there is one; 'cls' [B, D]; 'mean'
            of the patch tokens [B, D]; or 'map' [B, H/P, W/P, D], the patch tokens in the order of
            the image.
          blocks: take it after each of these blocks, 0 the first and -1 the last.

        Returns:
          An array of `dtype` (means are float32); with `blocks`, a list of one for each. The final
          norm, if the encoder has one, is applied to all.

        Raises:
          UserError: the output or a block does not exist, or the images do not fit the parameters.
        """
        if output not in OUTPUTS:
            raise UserError(f'output={output!r} is unknown: choose {" | ".join(OUTPUTS)}.')
        grid = grid_size(images.shape[1:3], self.patch_size)
        self._check_images(images, grid)
        if isinstance(blocks, int):
            raise UserError(f'blocks={blocks} must be several, such as ({blocks},).')
        return jax.tree.map(lambda x: OUTPUTS[output](x, grid), self(images, blocks=blocks))

    def _check_images(self, images: Float[ArrayLike, 'B H W C'], grid: tuple[int, int]) -> None:
        """Raises a UserError for images of another size than that of the parameters."""
        if self.is_initializing() or not self.has_variable('params', 'patch_embed'):
            return
        params = self.variables['params']
        channels = params['patch_embed']['kernel'].shape[0] // self.patch_size**2
        if problem := self._other_grid(params, grid):
            raise UserError(
                f'Images of {images.shape[1]} x {images.shape[2]} pixels are {problem}: give '
                f'mae_jax.load_encoder image_size={tuple(images.shape[1:3])}.'
            )
        if images.shape[3] != channels:
            raise UserError(
                f'Images of {images.shape[3]} channels, where this encoder takes {channels}: give '
                f'mae_jax.load_encoder channels={images.shape[3]}.'
            )

    def _other_grid(self, params: Any, grid: tuple[int, int]) -> str | None:
        """Returns what is wrong with a grid that is not that of the parameters; None if it is."""
        count, options = grid[0] * grid[1], self.options
        if options.absolute_positions:
            patches = params['pos_embed'].shape[1] - options.cls_token
            if count != patches:
                return f'{count} patches, and this encoder takes {patches}'
        for block in range(self.depth):
            attention = params['blocks'][f'block_{block}']['attention']
            rows = relative_rows(options, block, grid)
            if any(len(attention[name]) != expected for name, expected in rows.items()):
                return f'{grid[0]} x {grid[1]} patches, and the relative positions of another grid'
        return None


def cls_of(tokens: Float[Array, 'B T D'], grid: tuple[int, int]) -> Float[Array, 'B D']:
    """Returns the cls token among the tokens of an encoder.

    Raises:
      UserError: there is none.
    """
    if tokens.shape[1] == grid[0] * grid[1]:
        raise UserError("This encoder has no cls token (model.cls_token=False): use 'mean'.")
    return tokens[:, 0]


def patches_of(tokens: Float[Array, 'B T D'], grid: tuple[int, int]) -> Float[Array, 'B N D']:
    """Returns the tokens of the patches among the tokens of an encoder."""
    return tokens[:, tokens.shape[1] - grid[0] * grid[1] :]


OUTPUTS = {
    'tokens': lambda tokens, grid: tokens,
    'cls': cls_of,
    'mean': lambda tokens, grid: patches_of(tokens, grid).astype(jnp.float32).mean(axis=1),
    'map': lambda tokens, grid: patches_of(tokens, grid).reshape(tokens.shape[0], *grid, -1),
}
"""What `Encoder.features` can return: functions of tokens and the grid of patches."""
