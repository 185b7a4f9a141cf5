"""The Vision Transformer: variants, block, transformer, encoder.

Pre-norm blocks with fused qkv, exact GELU and LayerNorm of eps 1e-6, initialised as the original
MAE. Parameters are float32; `dtype` is that of activations, while LayerNorm statistics, the
softmax and whatever feeds it are float32.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mae_jax.errors import UserError
from mae_jax.models.dense import PRODUCT, Dense
from mae_jax.models.positions import sincos_2d
from mae_jax.patches import grid_size, patchify

VARIANTS = {
    'vit_tiny': dict(width=192, depth=12, heads=3, patch_size=16),
    'vit_small': dict(width=384, depth=12, heads=6, patch_size=16),
    'vit_base': dict(width=768, depth=12, heads=12, patch_size=16),
    'vit_large': dict(width=1024, depth=24, heads=16, patch_size=16),
    'vit_huge': dict(width=1280, depth=32, heads=16, patch_size=14),
}

REMAT_POLICIES = {
    'none': None,
    'block': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.save_only_these_names(PRODUCT),
}
"""What the backward pass computes again: nothing, whole blocks, or all but the dense products."""

# The one-pass variance, E[x^2] - E[x]^2, cancels where the mean is large.
LayerNorm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


def architecture(
    variant: str,
    *,
    patch_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> dict[str, int]:
    """{width, depth, heads, patch_size} of a variant, save for what is given.

    Raises:
      UserError: unknown variant, or a width that 4 or the heads do not divide.
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
    """Refuses, with a UserError, a width that 4 (for the positions) or the heads do not divide."""
    if heads < 1 or width % heads or width % 4:
        raise UserError(
            f'model.{prefix}width={width} with model.{prefix}heads={heads} does not work: '
            'choose a width that both 4 and the number of heads divide.'
        )


def blocks_flops(depth: int, width: int, tokens: int) -> float:
    """Floating-point operations of the matrix products of so many blocks, one image, forward."""
    return depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, [B, N, D] -> [B, N, D]."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        batch, length, width = tokens.shape
        head_width = width // self.heads
        # Fused, because Xavier's bound depends on the shape: [D, 3D], not three times [D, D].
        qkv = Dense(3 * width, dtype=self.dtype, name='qkv')(tokens)
        qkv = qkv.reshape(batch, length, 3, self.heads, head_width)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        # Plain products: on a CPU they are faster than `jax.nn.dot_product_attention`.
        logits = jnp.einsum(
            'bqhd,bkhd->bhqk', q * head_width**-0.5, k, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, v).reshape(batch, length, width)
        return Dense(width, dtype=self.dtype, name='proj')(mixed)


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x; a CPU takes erf faster than erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU between them, [..., D] -> [..., D]."""

    hidden_width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        hidden = Dense(self.hidden_width, dtype=self.dtype, name='fc1')(tokens)
        return Dense(tokens.shape[-1], dtype=self.dtype, name='fc2')(gelu(hidden))


class Block(nn.Module):
    """Pre-norm transformer block, [B, N, D] -> [B, N, D].

    `branch_scale`, float32 [B, 2], multiplies what attention and the MLP add to each example.
    """

    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, branch_scale: jax.Array | None = None) -> jax.Array:
        def scaled(branch, index):
            if branch_scale is None:
                return branch
            return branch * branch_scale[:, index, None, None].astype(branch.dtype)

        hidden = LayerNorm(dtype=self.dtype, name='norm1')(tokens)
        attention = Attention(self.heads, self.dtype, name='attention')
        tokens = tokens + scaled(attention(hidden), 0)
        hidden = LayerNorm(dtype=self.dtype, name='norm2')(tokens)
        mlp = Mlp(int(tokens.shape[-1] * self.mlp_ratio), self.dtype, name='mlp')
        return tokens + scaled(mlp(hidden), 1)


class Transformer(nn.Module):
    """`depth` blocks, [B, N, D] -> [B, N, D] of `dtype`.

    Parameters are block_0 ... block_{depth-1}, with `scan` or without, so that a checkpoint does
    not know of it. `remat` is one of `REMAT_POLICIES`. The first `frozen_blocks` have no backward
    pass: the gradient of all that comes before the others is zero. `branch_scale`, float32
    [B, depth, 2], is what each block's two branches are multiplied by; None multiplies nothing.
    """

    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False
    frozen_blocks: int = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, branch_scale: jax.Array | None = None) -> jax.Array:
        if self.remat not in REMAT_POLICIES:
            names = ' | '.join(REMAT_POLICIES)
            raise UserError(f'model.remat={self.remat!r} is unknown: use {names}.')
        if not 0 <= self.frozen_blocks <= self.depth:
            raise UserError(
                f'{self.frozen_blocks} of {self.depth} blocks cannot be frozen: '
                f'choose a number from 0 to {self.depth}.'
            )
        run = self._loop if self.is_initializing() or not self.scan else self._scan
        tokens = tokens.astype(self.dtype)
        if self.frozen_blocks:
            frozen = run(tokens, branch_scale, range(self.frozen_blocks))
            tokens = jax.lax.stop_gradient(frozen)
        return run(tokens, branch_scale, range(self.frozen_blocks, self.depth))

    def _loop(self, tokens: jax.Array, branch_scale: jax.Array | None, ids: range) -> jax.Array:
        """These blocks, each compiled by itself."""
        block = Block
        if self.remat != 'none':
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat])
        for i in ids:
            scale = None if branch_scale is None else branch_scale[:, i]
            layer = block(self.heads, self.mlp_ratio, self.dtype, name=f'block_{i}')
            tokens = layer(tokens, scale)
        return tokens

    def _scan(self, tokens: jax.Array, branch_scale: jax.Array | None, ids: range) -> jax.Array:
        """One compiled block, run over the stacked parameters of these."""
        if not ids:
            return tokens
        block = Block(self.heads, self.mlp_ratio, self.dtype, parent=None)
        blocks = [self.variables['params'][f'block_{i}'] for i in ids]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        if branch_scale is not None:
            branch_scale = jnp.moveaxis(branch_scale[:, ids.start : ids.stop], 1, 0)

        def step(tokens, layer):
            params, scale = layer
            return block.apply({'params': params}, tokens, scale), None

        if self.remat != 'none':
            # A scan's body needs no barrier against common subexpressions: the loop is one.
            step = jax.checkpoint(step, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(step, tokens, (params, branch_scale))[0]


def _conv_bias(fan_in: int) -> nn.initializers.Initializer:
    """U(+-1/sqrt(fan_in)), what PyTorch's Conv2d does; the original leaves it at that."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Encoder(nn.Module):
    """Images to tokens, over the visible patches alone (paper, section 3, "MAE encoder")."""

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False
    frozen_blocks: int = 0

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        ids_keep: jax.Array | None = None,
        final_norm: bool = True,
        branch_scale: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes images.

        Args:
          images: float [B, H, W, C], normalised.
          ids_keep: int [B, K], the patches to look at; None is all N of them.
          final_norm: False gives the tokens before the final norm, for mean pooling, which has
            its own.
          branch_scale: float32 [B, depth, 2], what each block's attention and MLP branch is
            multiplied by before it is added; None multiplies nothing.

        Returns:
          Tokens [B, 1 + K, D] of `dtype`, the cls token first.

        Raises:
          UserError: `patch_size` does not divide the image, or the heads or 4 the width, or there
            are fewer blocks than `frozen_blocks`.
        """
        check_width(self.width, self.heads)
        grid = grid_size(images.shape[1:3], self.patch_size)
        patches = patchify(images, self.patch_size)
        table = self.param('pos_embed', lambda _: jnp.asarray(sincos_2d(self.width, grid)))
        positions = table[:, 1:]
        if ids_keep is not None:
            # Before the projection: hidden patches cost nothing but this gather.
            patches = jnp.take_along_axis(patches, ids_keep[..., None], axis=1)
            positions = jnp.take(positions[0], ids_keep, axis=0)
        bias_init = _conv_bias(patches.shape[-1])
        embed = Dense(self.width, dtype=self.dtype, bias_init=bias_init, name='patch_embed')
        cls = self.param('cls_token', nn.initializers.normal(0.02), (1, 1, self.width))
        cls = jnp.broadcast_to(cls + table[:, :1], (len(images), 1, self.width))
        tokens = jnp.concatenate([cls, embed(patches) + positions], axis=1)
        blocks = Transformer(
            self.depth,
            self.heads,
            self.mlp_ratio,
            self.dtype,
            self.remat,
            self.scan,
            self.frozen_blocks,
            name='blocks',
        )
        tokens = blocks(tokens, branch_scale)
        return LayerNorm(dtype=self.dtype, name='norm')(tokens) if final_norm else tokens
