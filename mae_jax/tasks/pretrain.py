"""Masked autoencoding: reconstruct the hidden patches from the visible ones (paper, section 3)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mae_jax.config.model import image_size, make_architecture
from mae_jax.models.mae import MAE, MAEOutput
from mae_jax.models.patches import grid_size
from mae_jax.models.vit import blocks_flops
from mae_jax.pretext.tokenizers import Tokenizer, make_tokenizer
from mae_jax.tasks.preprocess import loaded_images, normalize
from mae_jax.training.task import Batch


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """The pretraining `Task`. Mean, std and scale are those of `normalize`.

    The tokenizer, if the target is tokens, is no part of the model: its parameters, if it has any,
    are model state, `{'tokenizer': ...}`, zero until `fit_target` puts the real ones there.
    """

    model: MAE
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    tokenizer: Tokenizer | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid_size(self.image_size, self.model.patch_size)

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        images = jnp.zeros((1, *self.image_size, len(self.mean)))
        params = self.model.init(key, images, noise=self._noise(key, 1))['params']
        if self.tokenizer is None or not self.tokenizer.shapes:
            return params, {}
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.tokenizer.shapes)
        return params, {'tokenizer': empty}

    def is_trained(self, path: str) -> bool:
        """All but the fixed sin-cos position tables and the basis of the target."""
        return not path.endswith('pos_embed') and not path.startswith('pca/')

    def is_required(self, path: str) -> bool:
        """All but the position tables, which are made anew for any image size."""
        return self.is_trained(path)

    def check(self, batch: Batch) -> None:
        """Any image will do."""

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        images = loaded_images(batch, self.image_size)
        return {'image': self._normalized(images), 'noise': self._noise(key, len(images))}

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        del key  # all that is random was drawn by `prepare`
        output = self._apply(params, model_state, batch['image'], batch['noise'])
        return output.loss, {}, model_state

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array
    ) -> dict[str, jax.Array]:
        """Sum of the valid rows' losses under masks fixed by each example's place."""
        output = self.reconstruct(params, batch, first, model_state)
        per_image = jax.vmap(self.model.target.mean_error)(output.errors, output.mask)
        valid = batch['valid'].astype(jnp.float32)
        return {'loss': jnp.sum(per_image * valid), 'count': jnp.sum(valid)}

    def reconstruct(
        self, params: Any, batch: Batch, first: jax.Array | int = 0, model_state: Any = None
    ) -> MAEOutput:
        """The model's output for a loaded batch under the masks of `evaluate`.

        Its loss is NaN where the target is tokens and there is no `model_state` to make them by.
        """
        images = self._normalized(batch['image'])

        def noise_of(place: jax.Array) -> jax.Array:
            return self._noise(jax.random.fold_in(jax.random.key(0), place), 1)[0]

        noise = jax.vmap(noise_of)(first + jnp.arange(len(images)))
        return self._apply(params, model_state, images, noise)

    def tokens(self, weights: Any, images: jax.Array) -> jax.Array:
        """What the tokenizer, with these parameters, makes of normalised images: int32 [B, N]."""
        shown = images * jnp.asarray(self.std) + jnp.asarray(self.mean)  # undoes `normalize` ...
        return self.tokenizer.apply(weights, shown.clip(0, 1))  # ... but for rounding

    def flops_per_image(self) -> float:
        """Matrix products of forward and backward pass (three times the forward's).

        Those of a tokenizer, which has no backward pass, are not among them.
        """
        model, hidden_size = self.model, self.model.patch_size**2 * len(self.mean)
        kept = model.masking.num_kept(self.num_patches)
        seen = self.num_patches if model.encoder_mask_tokens else kept
        predicted = model.target.prediction_size(hidden_size)

        encoder = 2 * seen * hidden_size * model.width
        encoder += blocks_flops(model.depth, model.width, seen + 1)
        decoder = (
            2 * (seen + 1) * model.width * model.decoder_width
            + blocks_flops(model.decoder_depth, model.decoder_width, self.num_patches + 1)
            + 2 * self.num_patches * model.decoder_width * predicted
        )
        return 3.0 * (encoder + decoder)

    def _apply(
        self, params: Any, model_state: Any, images: jax.Array, noise: jax.Array
    ) -> MAEOutput:
        target = None
        if self.tokenizer is not None and model_state is not None:
            target = self.tokens(model_state.get('tokenizer', {}), images)
        return self.model.apply({'params': params}, images, noise=noise, target=target)

    def _noise(self, key: jax.Array, batch_size: int) -> jax.Array:
        return self.model.masking.draw_noise(key, batch_size, self.grid)

    def _normalized(self, images: jax.Array) -> jax.Array:
        return normalize(images, scale=self.scale, mean=self.mean, std=self.std)


def make_tokenizer_of(config: ml_collections.ConfigDict) -> Tokenizer | None:
    """What makes the tokens that a config's model predicts; None for other targets."""
    target = config.target
    if target.name != 'token':
        return None
    grid = grid_size(image_size(config), make_architecture(config.model)['patch_size'])
    return make_tokenizer(
        target.tokenizer, codes=target.codes, grid=grid, channels=config.dataset.channels
    )
