"""Batch normalisation, as PyTorch defines it."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.errors import UserError


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    As PyTorch's: a tenth of the running statistics is replaced by those of each batch, and the
    running variance is the unbiased one (divided by n - 1), which Flax's is not. Under `jit` over
    a mesh the statistics are those of the global batch. Statistics and result are float32.

    Attributes:
      affine: whether each channel has a scale and a bias.
    """

    epsilon: float = 1e-6
    momentum: float = 0.9
    affine: bool = False

    @nn.compact
    def __call__(self, x: Float[ArrayLike, '*S D'], train: bool) -> Float32[Array, '*S D']:
        x = jnp.asarray(x, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, x.shape[-1:])
        running_var = self.variable('batch_stats', 'var', jnp.ones, x.shape[-1:])
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            if count < 2:
                raise UserError('Batch norm cannot train on one example: raise batch_size.')
            mean, var = x.mean(axis=axes), x.var(axis=axes)
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                for running, new in (running_mean, mean), (running_var, unbiased):
                    running.value = self.momentum * running.value + (1 - self.momentum) * new
        normalised = (x - mean) * jax.lax.rsqrt(var + self.epsilon)
        if not self.affine:
            return normalised
        scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
        bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
        return normalised * scale + bias
