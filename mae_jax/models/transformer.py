"""The transformer that encoder and decoder share: attention, MLP, block, and a stack of blocks.

Pre-norm blocks with fused qkv and exact GELU, initialised as the original MAE, whose LayerNorm adds
1e-6 to the variance; models of other libraries may have another `norm_eps`. Parameters are float32;
`dtype` is that of the branches: products and the activations between them. The residual stream that
the branches are added to has `residual_dtype`, float32 as under PyTorch's autocast, and so has what
LayerNorm reads; its statistics, the softmax and its logits are always float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.errors import UserError
from mae_jax.models.attention.layer import Attention
from mae_jax.models.dense import PRODUCT, Dense
from mae_jax.models.norm import NORM_EPS, LayerNorm
from mae_jax.models.options import EncoderOptions
from mae_jax.models.windows import from_windows, to_windows

REMAT_POLICIES = {
    'none': None,
    'block': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.save_only_these_names(PRODUCT),
}
"""What the backward pass computes again: nothing, whole blocks, or all but the dense products."""


def stream_dtype(module: Any) -> jnp.dtype:
    """Returns the dtype of a module's residual stream: `residual_dtype`, or `dtype` if wider."""
    return jnp.promote_types(module.residual_dtype, module.dtype)


@jax.custom_jvp
def gelu(x: Float[Array, '*S']) -> Float[Array, '*S']:
    """Multiplies x by the normal distribution function of x, in float32; rounds once, to its dtype.

    By erf, which is faster than erfc on a CPU.
    """
    wide = x.astype(jnp.float32)
    return (wide * _distribution(wide)).astype(x.dtype)


def _distribution(x: Float32[Array, '*S']) -> Float32[Array, '*S']:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


@gelu.defjvp
def _differentiate_gelu(primals, tangents):
    (x,), (tangent,) = primals, tangents
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    slope = _distribution(wide) + wide * density
    return gelu(x), (tangent.astype(jnp.float32) * slope).astype(x.dtype)


class Mlp(nn.Module):
    """Two dense layers with the exact (erf) GELU between them."""

    hidden_width: int
    dtype: Any = jnp.float32
    out_dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Float[Array, '*S D']) -> Float[Array, '*S D']:
        hidden = Dense(self.hidden_width, dtype=self.dtype, name='fc1')(tokens)
        return Dense(tokens.shape[-1], self.dtype, self.out_dtype, name='fc2')(gelu(hidden))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to its input.

    The residual stream has the dtype of the input, whatever `dtype` is, and the branches' last
    products are added to it before they are rounded to any other.

    Attributes:
      options, grid: as of `Transformer`.
      window: side of the windows of attention, in patches; 0: it is over all tokens.
    """

    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    attention: str = 'plain'
    norm_eps: float = NORM_EPS
    options: EncoderOptions = EncoderOptions()
    grid: tuple[int, int] | None = None
    window: int = 0

    @nn.compact
    def __call__(
        self,
        tokens: Float[ArrayLike, 'B T D'],
        branch_scale: Float32[ArrayLike, 'B 2'] | None = None,
    ) -> Float[Array, 'B T D']:
        """Applies the block.

        `branch_scale` multiplies what attention and the MLP add to each example.
        """

        def scaled(branch, name, index):
            if self.options.layer_scale is not None:
                initial = nn.initializers.constant(self.options.layer_scale)
                scale = self.param(f'{name}_scale', initial, branch.shape[-1:])
                branch = branch * scale.astype(tokens.dtype)
            if branch_scale is None:
                return branch
            return branch * branch_scale[:, index, None, None].astype(tokens.dtype)

        hidden = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm1')(tokens)
        out = tokens.dtype
        tokens = tokens + scaled(self._attend(hidden, out), 'attention', 0)
        hidden = LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm2')(tokens)
        mlp = Mlp(int(tokens.shape[-1] * self.mlp_ratio), self.dtype, out, name='mlp')
        return tokens + scaled(mlp(hidden), 'mlp', 1)

    def _attend(self, hidden: Float[Array, 'B T D'], out: Any) -> Float[Array, 'B T D']:
        """Applies attention, in windows if there are any."""
        options = (self.heads, self.dtype, self.attention, out, self.options)
        if not self.window:
            return Attention(*options, self.grid, name='attention')(hidden)
        attention = Attention(*options, (self.window, self.window), name='attention')
        windows = attention(to_windows(hidden, self.grid, self.window))
        return from_windows(windows, self.grid, self.window)


class Transformer(nn.Module):
    """A stack of blocks.

    Parameters are block_0 ... block_{depth-1}, with `scan` or without, so that a checkpoint does
    not depend on it.

    Attributes:
      remat: one of `REMAT_POLICIES`.
      scan: whether one compiled block is run over the stacked parameters of all.
      frozen_blocks: how many of the first blocks have no backward pass: the gradient of everything
        before the others is zero.
      attention: one of `attention.dispatch.ATTENTION`.
      norm_eps: what LayerNorm adds to the variance.
      residual_dtype: of the residual stream, see `stream_dtype`.
      options: what the blocks have beside the original's.
      grid: rows and columns of the patches among the tokens, for the options that need it.
    """

    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    remat: str = 'none'
    scan: bool = False
    frozen_blocks: int = 0
    attention: str = 'plain'
    norm_eps: float = NORM_EPS
    residual_dtype: Any = jnp.float32
    options: EncoderOptions = EncoderOptions()
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Float[ArrayLike, 'B T D'],
        branch_scale: Float32[ArrayLike, 'B {self.depth} 2'] | None = None,
        after: Sequence[int] | None = None,
    ) -> Float[Array, 'B T D'] | list[Float[Array, 'B T D']]:
        """Applies the blocks.

        Args:
          tokens: of any float dtype; the result has that of the residual stream.
          branch_scale: what each block's two branches are multiplied by; None multiplies nothing.
          after: numbers of blocks, -1 being the last.

        Returns:
          The tokens after the last block; with `after`, a list of the tokens after each of these.

        Raises:
          UserError: an unknown `remat` or `attention`, or a block that does not exist.
        """
        if self.remat not in REMAT_POLICIES:
            names = ' | '.join(REMAT_POLICIES)
            raise UserError(f'model.remat={self.remat!r} is unknown: use {names}.')
        if not 0 <= self.frozen_blocks <= self.depth:
            raise UserError(
                f'{self.frozen_blocks} of {self.depth} blocks cannot be frozen: '
                f'choose a number from 0 to {self.depth}.'
            )
        run = self._loop if self.is_initializing() or not self.scan else self._scan
        tokens = tokens.astype(stream_dtype(self))
        start, outputs = 0, {}
        last = self.depth - 1
        returned = [last] if after is None else [_block_number(i, self.depth) for i in after]
        stops = {self.frozen_blocks, self.depth, *(i + 1 for i in returned)}
        for stop in sorted(stops | self.options.borders(self.depth)):
            tokens = run(tokens, branch_scale, range(start, stop))
            if 0 < stop <= self.frozen_blocks:
                tokens = jax.lax.stop_gradient(tokens)
            start, outputs[stop - 1] = stop, tokens
        return tokens if after is None else [outputs[i] for i in returned]

    @nn.nowrap
    def _fields(self, block: int) -> tuple[Any, ...]:
        """Returns the fields of a block."""
        fields = (self.heads, self.mlp_ratio, self.dtype, self.attention, self.norm_eps)
        return *fields, self.options, self.grid, self.options.window_of(block)

    def _loop(
        self,
        tokens: Float[ArrayLike, 'B T D'],
        branch_scale: Float32[ArrayLike, 'B L 2'] | None,
        ids: range,
    ) -> Float[ArrayLike, 'B T D']:
        """Applies the blocks `ids`, each compiled by itself."""
        block = Block
        if self.remat != 'none':
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat])
        for i in ids:
            scale = None if branch_scale is None else branch_scale[:, i]
            layer = block(*self._fields(i), name=f'block_{i}')
            tokens = layer(tokens, scale)
        return tokens

    def _scan(
        self,
        tokens: Float[ArrayLike, 'B T D'],
        branch_scale: Float32[ArrayLike, 'B L 2'] | None,
        ids: range,
    ) -> Float[ArrayLike, 'B T D']:
        """Applies the blocks `ids`, compiled once, in a loop over their stacked parameters.

        They have windows of one size.
        """
        if not ids:
            return tokens
        block = Block(*self._fields(ids.start), parent=None)
        blocks = [self.variables['params'][f'block_{i}'] for i in ids]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        if branch_scale is not None:
            branch_scale = jnp.moveaxis(branch_scale[:, ids.start : ids.stop], 1, 0)

        def step(tokens, layer):
            params, scale = layer
            tokens, params = _split_by_rows(tokens), _gathered(params, self.dtype)
            return block.apply({'params': params}, tokens, scale), None

        if self.remat != 'none':
            # A scan's body needs no barrier against common subexpressions: the loop is one.
            step = jax.checkpoint(step, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(step, tokens, (params, branch_scale))[0]


def _split_by_rows(tokens: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """Constrains rows to the devices of the mesh that is set around the call, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or tokens.shape[0] % mesh.size:
        return tokens
    return jax.lax.with_sharding_constraint(tokens, PartitionSpec(mesh.axis_names))


def _gathered(params: Any, dtype: Any) -> Any:
    """Gathers the kernels of a block on every device, in the dtype of their products.

    Left to itself, XLA splits the products of a loop's body as the kernels are split, and passes
    activations from device to device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or mesh.size == 1:
        return params

    @jax.custom_jvp
    def gather(kernel):
        whole = jax.lax.with_sharding_constraint(kernel.astype(dtype), PartitionSpec())
        return whole.astype(kernel.dtype)

    gather.defjvp(lambda primals, tangents: (gather(*primals), tangents[0]))
    return jax.tree.map_with_path(
        lambda path, p: gather(p) if path[-1].key == 'kernel' else p, params
    )


def _block_number(index: int, depth: int) -> int:
    """Returns the number of a block, counted from the end where negative, as in a list."""
    if not -depth <= index < depth:
        raise UserError(f'blocks={index}: the model has {depth} blocks, 0 to {depth - 1}.')
    return index % depth
