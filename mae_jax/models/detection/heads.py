"""The heads of Mask R-CNN: class and box of a proposal, and its mask."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.models.dense import Dense
from mae_jax.models.detection.layers import NormedConv
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.segmentation.layers import Doubling, kaiming


class BoxHead(nn.Module):
    """Convolutions with norm, a dense layer, and from it classes and a box for each class.

    The dense layer reads the cells by row, column, then channel; PyTorch's by channel first.
    """

    num_classes: int
    options: DetectorOptions = DetectorOptions()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, cells: Float[ArrayLike, 'B R s s D']
    ) -> tuple[Float32[Array, 'B R C'], Float32[Array, 'B R {self.num_classes} 4']]:
        """Computes the logits of C = K + 1 classes, the last for no object, and each box's deltas.

        Deltas are those of `boxes.decode`.
        """
        options, K = self.options, self.num_classes
        x = jnp.asarray(cells, self.dtype)
        for number in range(options.box_convolutions):
            x = NormedConv(options.channels, dtype=self.dtype, name=f'conv_{number}')(x)
        x = x.reshape(*x.shape[:2], -1)
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')
        x = nn.relu(Dense(options.box_width, self.dtype, kernel_init=init, name='dense')(x))

        def predict(name: str, width: int, std: float) -> Array:
            init = nn.initializers.normal(std)
            return Dense(width, self.dtype, jnp.float32, init, name=name)(x)

        deltas = predict('deltas', 4 * K, 0.001)
        return predict('classes', K + 1, 0.01), deltas.reshape(*deltas.shape[:2], K, 4)

    def flops(self, boxes: int) -> float:
        """Counts the products, forward, of so many boxes."""
        options, cells = self.options, self.options.box_size**2
        convolutions = options.box_convolutions * 9 * options.channels**2
        dense = cells * options.channels * options.box_width
        return (
            2.0
            * boxes
            * (cells * convolutions + dense + options.box_width * (5 * self.num_classes + 1))
        )


class MaskHead(nn.Module):
    """Convolutions with norm, a doubling of the size, and a mask for each class."""

    num_classes: int
    options: DetectorOptions = DetectorOptions()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, cells: Float[ArrayLike, 'B R s s D']
    ) -> Float32[Array, 'B R {2*cells.shape[2]} {2*cells.shape[3]} {self.num_classes}']:
        """Computes the logits of masks."""
        options = self.options
        x = jnp.asarray(cells, self.dtype)
        for number in range(options.mask_convolutions):
            x = NormedConv(options.channels, dtype=self.dtype, name=f'conv_{number}')(x)
        shape = x.shape
        x = x.reshape(-1, *shape[2:])
        init = dict(kernel_init=_deconvolution_init, bias_init=nn.initializers.zeros)
        x = nn.relu(Doubling(options.channels, self.dtype, **init, name='double')(x))
        x = x.reshape(*shape[:2], *x.shape[1:])
        init = nn.initializers.normal(0.001)
        return Dense(self.num_classes, self.dtype, jnp.float32, init, name='masks')(x)

    def flops(self, boxes: int) -> float:
        """Counts the products, forward, of so many boxes."""
        options, ours = self.options, self.options.channels
        convolutions = 9 * options.mask_convolutions * ours**2
        last = 4 * ours**2 + 4 * ours * self.num_classes
        return 2.0 * boxes * options.mask_size**2 * (convolutions + last)


def _deconvolution_init(
    key: jax.Array, shape: tuple[int, int, int, int], dtype: Any = jnp.float32
) -> Float32[Array, 'D 2 2 E']:
    """Draws as `kaiming`; the fan out of a transposed convolution is that of its inputs."""
    return kaiming(key, (*shape[1:3], shape[3], shape[0]), dtype).transpose(3, 0, 1, 2)
