"""The segmentation model: an encoder, and heads on the maps of some of its blocks."""

from typing import NamedTuple

from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.models.classifier import drop_path_scale
from mae_jax.models.patches import grid_size
from mae_jax.models.segmentation.layers import resize
from mae_jax.models.segmentation.linear import LinearHead
from mae_jax.models.segmentation.upernet import FCNHead, UperHead
from mae_jax.models.vit import OUTPUTS, Encoder

HEADS = {'linear': LinearHead, 'upernet': UperHead}


class Noise(NamedTuple):
    """What is random in training, uniform in [0, 1); None where nothing is dropped."""

    path: Float32[Array, 'B L 2'] | None = None
    """By which branches of the L blocks are dropped, as of `drop_path_scale`."""
    head: Float32[Array, 'B _D'] | None = None
    """By which channels are dropped before the head's classifier."""
    auxiliary: Float32[Array, 'B _E'] | None = None


NO_NOISE = Noise()


class Logits(NamedTuple):
    """Of every pixel."""

    head: Float32[Array, 'B H W classes']
    auxiliary: Float32[Array, 'B H W classes'] | None


class Segmenter(nn.Module):
    """Predicts the class of every pixel; parameters are {'encoder', 'head', 'auxiliary'}.

    Running statistics of batch norm are in the collection 'batch_stats'.

    Attributes:
      taps: the blocks whose tokens the head sees; `UperHead` takes four.
      final_norm: whether the encoder's final norm is applied to them.
      drop_path: stochastic depth's rate of the last block.
    """

    encoder: Encoder
    head: LinearHead | UperHead
    auxiliary: FCNHead | None
    taps: tuple[int, ...]
    final_norm: bool = False
    drop_path: float = 0.0

    def __call__(
        self,
        images: Float[ArrayLike, 'B H W C'],
        noise: Noise = NO_NOISE,
        train: bool = False,
    ) -> Logits:
        """Computes the logits of every pixel, enlarged bilinearly to the size of the images.

        Args:
          images: normalised, of the size of the encoder's positions.
          noise: drops branches and channels.
          train: whether batch norm normalises by this batch and updates 'batch_stats', which must
            then be mutable.
        """
        maps, size = self.maps(images, noise), images.shape[1:3]
        logits = resize(self.head(maps, train, noise.head), size)
        if self.auxiliary is None:
            return Logits(logits, None)
        return Logits(logits, resize(self.auxiliary(maps, train, noise.auxiliary), size))

    def maps(
        self, images: Float[ArrayLike, 'B H W C'], noise: Noise = NO_NOISE
    ) -> list[Float[Array, 'B h w D']]:
        """Computes the tokens of the patches after each block of `taps`, as maps."""
        scale = None
        if noise.path is not None and self.drop_path:
            scale = drop_path_scale(noise.path, self.drop_path)
        tokens = self.encoder(
            images, final_norm=self.final_norm, branch_scale=scale, blocks=self.taps
        )
        grid = grid_size(images.shape[1:3], self.encoder.patch_size)
        return [OUTPUTS['map'](x, grid) for x in tokens]


def default_taps(depth: int, head: str) -> tuple[int, ...]:
    """Returns the blocks that a head sees: of 12, UperNet (3, 5, 7, 11), a linear head the last.

    They are the nearest to a third, a half, two thirds and all of the blocks, so that four blocks
    are seen once each.
    """
    if head == 'linear':
        return (depth - 1,)
    return tuple(max((depth * part + 3) // 6 - 1, 0) for part in (2, 3, 4, 6))
