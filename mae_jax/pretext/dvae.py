"""The encoder of DALL-E's discrete VAE (arXiv 2102.12092), whose codes a token target predicts.

Four groups of residual blocks, each but the last followed by a maximum over 2 x 2 pixels, and a
linear map to the logits of the codes.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, ArrayLike, Float, Float32

GROUPS = 4
REDUCTION = 2 ** (GROUPS - 1)
"""Pixels a side of the image that one code stands for."""
LOGIT_LAPLACE_EPS = 0.1


def map_pixels(images: Float[ArrayLike, '*S']) -> Float[ArrayLike, '*S']:
    """Maps [0, 1] to [0.1, 0.9]: the logit-Laplace distribution of pixels excludes 0 and 1."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


class DVAE(nn.Module):
    """Images to logits of codes; the defaults are the published model's.

    Attributes:
      codes: number of codes in the codebook.
      width: of the first group, doubled by each following one.
      blocks: number of blocks in a group.
    """

    codes: int = 8192
    width: int = 256
    blocks: int = 2

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, 'B H W 3']
    ) -> Float32[Array, 'B H//8 W//8 {self.codes}']:
        """Computes the logits of images in [0, 1]."""
        x = map_pixels(images.astype(jnp.float32))
        x = _conv(self.width, 7, 'input')(x)
        gain = 1 / (GROUPS * self.blocks) ** 2
        for group in range(GROUPS):
            if group:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for i in range(self.blocks):
                name = f'group_{group + 1}_block_{i + 1}'
                x = Block(self.width * 2**group, gain, name=name)(x)
        return _conv(self.codes, 1, 'output')(nn.relu(x))


class Block(nn.Module):
    """Residual block of four convolutions; the skip is a projection where widths differ.

    `gain` multiplies what the convolutions add.
    """

    width: int
    gain: float

    @nn.compact
    def __call__(self, x: Float32[Array, 'B H W C']) -> Float32[Array, 'B H W {self.width}']:
        hidden = x
        for i, (width, size) in enumerate([(self.width // 4, 3)] * 3 + [(self.width, 1)]):
            hidden = _conv(width, size, f'conv_{i + 1}')(nn.relu(hidden))
        if x.shape[-1] != self.width:
            x = _conv(self.width, 1, 'id_path')(x)
        return x + self.gain * hidden


def _conv(width: int, size: int, name: str) -> nn.Conv:
    """Makes a convolution that keeps the size; weights N(0, 1 / fan-in), biases 0."""
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    precision = jax.lax.Precision.HIGHEST  # on GPUs and TPUs, less would change codes
    return nn.Conv(width, (size, size), precision=precision, kernel_init=init, name=name)


def parameter_shapes(dvae: DVAE) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by name, such as 'group_1_block_1/conv_1/kernel'."""
    images = jax.ShapeDtypeStruct((1, REDUCTION, REDUCTION, 3), jnp.float32)
    params = jax.eval_shape(dvae.init, jax.random.key(0), images)['params']
    return {name: x.shape for name, x in traverse_util.flatten_dict(params, sep='/').items()}
