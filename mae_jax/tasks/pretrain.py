"""Masked autoencoding: reconstruct the hidden patches from the visible ones (paper, section 3)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mae_jax.models.mae import MAE, MAEOutput, reconstruction_loss
from mae_jax.models.vit import blocks_flops
from mae_jax.patches import grid_size, patchify
from mae_jax.pretext.masking import draw_noise, num_kept
from mae_jax.pretext.targets import get_target
from mae_jax.tasks.preprocess import normalize
from mae_jax.tasks.task import Batch


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """The pretraining `Task`. Mean, std and scale are those of `normalize`."""

    model: MAE
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0

    @property
    def num_patches(self) -> int:
        rows, columns = grid_size(self.image_size, self.model.patch_size)
        return rows * columns

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        images = jnp.zeros((1, *self.image_size, len(self.mean)))
        noise = jnp.zeros((1, self.num_patches))
        return self.model.init(key, images, noise=noise)['params'], {}

    def is_trained(self, path: str) -> bool:
        """All but the fixed sin-cos position tables."""
        return not path.endswith('pos_embed')

    def is_required(self, path: str) -> bool:
        """All but the position tables, which are made anew for any image size."""
        return self.is_trained(path)

    def check(self, batch: Batch) -> None:
        """Any image will do."""

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        images = batch['image']
        noise = draw_noise(key, len(images), self.num_patches, self.model.mask_strategy)
        return {'image': self._normalized(images), 'noise': noise}

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        del key  # all that is random was drawn by `prepare`
        output = self.model.apply({'params': params}, batch['image'], noise=batch['noise'])
        return output.loss, {}, model_state

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array
    ) -> dict[str, jax.Array]:
        """Sum of the valid rows' losses under masks fixed by each example's place."""
        output = self.reconstruct(params, batch, first)
        target = get_target(self.model.target)(
            patchify(self._normalized(batch['image']), self.model.patch_size)
        )
        per_image = jax.vmap(reconstruction_loss)(output.prediction, target, output.mask)
        valid = batch['valid'].astype(jnp.float32)
        return {'loss': jnp.sum(per_image * valid), 'count': jnp.sum(valid)}

    def reconstruct(self, params: Any, batch: Batch, first: jax.Array | int = 0) -> MAEOutput:
        """The model's output for a loaded batch under the masks of `evaluate`."""
        images = self._normalized(batch['image'])

        def noise_of(place: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(0), place)
            return draw_noise(key, 1, self.num_patches, self.model.mask_strategy)[0]

        noise = jax.vmap(noise_of)(first + jnp.arange(len(images)))
        return self.model.apply({'params': params}, images, noise=noise)

    def flops_per_image(self) -> float:
        """Matrix products of forward and backward pass (three times the forward's)."""
        model, hidden_size = self.model, self.model.patch_size**2 * len(self.mean)
        kept = num_kept(self.num_patches, model.mask_ratio)

        encoder = 2 * kept * hidden_size * model.width
        encoder += blocks_flops(model.depth, model.width, kept + 1)
        decoder = (
            2 * (kept + 1) * model.width * model.decoder_width
            + blocks_flops(model.decoder_depth, model.decoder_width, self.num_patches + 1)
            + 2 * self.num_patches * model.decoder_width * hidden_size
        )
        return 3.0 * (encoder + decoder)

    def _normalized(self, images: jax.Array) -> jax.Array:
        return normalize(images, scale=self.scale, mean=self.mean, std=self.std)
