"""Masked autoencoding: reconstruct the hidden patches from the visible ones (paper, section 3)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from mae_jax.config.model import image_size, make_architecture, make_mae, statistics
from mae_jax.models.flops import blocks_flops
from mae_jax.models.mae import MAE, MAEOutput
from mae_jax.models.patches import grid_size
from mae_jax.pretext.tokenizers import Tokenizer, make_tokenizer
from mae_jax.tasks.fit_target import fit_target
from mae_jax.tasks.preprocess import loaded_images, normalize
from mae_jax.training.sharding import put, replicated
from mae_jax.training.state import TrainState
from mae_jax.training.task import Batch, Card, Crops, Task
from mae_jax.visualization.drawing import grid as draw_grid
from mae_jax.visualization.reconstruction import reconstruction_columns


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """The mean over images of the loss under masks fixed by each example's place."""

    loss: metrics.Average.from_output('loss')


@dataclasses.dataclass(frozen=True)
class Pretrain(Task):
    """The pretraining `Task`. Mean, std and scale are those of `normalize`.

    The tokenizer, if the target is tokens, is no part of the model: its parameters, if it has any,
    are model state, `{'tokenizer': ...}`, zero until `fit` reads them from its file.
    """

    model: MAE
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    tokenizer: Tokenizer | None = None
    picture_every_steps: int = 0
    online_probe: FrozenConfigDict | None = None
    probes_at_end: bool = False

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
        """Excludes the fixed sin-cos position tables and the basis of the target."""
        return not path.endswith('pos_embed') and not path.startswith('pca/')

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
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array | int
    ) -> Metrics:
        """Collects the losses of the valid rows under masks fixed by each example's place."""
        output = self.reconstruct(params, batch, first, model_state)
        per_image = jax.vmap(self.model.target.mean_error)(output.errors, output.mask)
        return Metrics.single_from_model_output(loss=per_image, mask=batch['valid'])

    def reconstruct(
        self, params: Any, batch: Batch, first: jax.Array | int = 0, model_state: Any = None
    ) -> MAEOutput:
        """Applies the model to a loaded batch under the masks of `evaluate`.

        The loss is NaN where the target is tokens and no `model_state` holds their tokenizer.
        """
        images = self._normalized(batch['image'])

        def noise_of(place: jax.Array) -> jax.Array:
            return self._noise(jax.random.fold_in(jax.random.key(0), place), 1)[0]

        noise = jax.vmap(noise_of)(first + jnp.arange(len(images)))
        return self._apply(params, model_state, images, noise)

    def tokens(self, weights: Any, images: jax.Array) -> jax.Array:
        """Turns normalised images into tokens, int32 [B, N], with the tokenizer's parameters."""
        shown = images * jnp.asarray(self.std) + jnp.asarray(self.mean)  # undoes `normalize` ...
        return self.tokenizer.apply(weights, shown.clip(0, 1))  # ... but for rounding

    def flops_per_image(self) -> float:
        """Counts forward and backward pass (three times the forward's), without any tokenizer."""
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

    def fit(self, state: TrainState, config: ConfigDict, crops: Crops, *, inherited: bool) -> Any:
        return fit_target(self, state, config.target, crops, inherited=inherited)

    def without_loops(self) -> 'Pretrain':
        return dataclasses.replace(self, model=self.model.clone(scan=False, attention='plain'))

    def make_draw(
        self, batch: dict[str, np.ndarray], mesh: Mesh
    ) -> Callable[[Any, Any], np.ndarray] | None:
        """Draws original, masked image and reconstruction, one row an image."""
        everywhere = replicated(mesh)
        images = self._normalized(batch['image'])

        def predict(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
            output = self.reconstruct(params, batch)
            variables = {'params': params}
            pixels = self.model.apply(variables, output.prediction, images, method='pixels')
            return pixels, output.mask

        predict = jax.jit(predict, out_shardings=everywhere)

        def draw(params: Any, model_state: Any) -> np.ndarray:
            del model_state  # a tokenizer's, of targets that are no pixels
            everything = {name: put(values, everywhere) for name, values in batch.items()}
            pixels, mask = predict(params, everything)
            columns = reconstruction_columns(
                np.asarray(images),
                np.asarray(pixels),
                np.asarray(mask),
                patch_size=self.model.patch_size,
                mean=self.mean,
                std=self.std,
            )
            return draw_grid(columns, self.model.target.caption, abreast=2)

        return draw

    def card(self, config: ConfigDict, source: Any) -> Card:
        model, target = config.model, config.target
        details = {
            'pca': f', the largest {target.components}',
            'token': f' by `{target.tokenizer}`',
        }.get(target.name, '')
        everywhere = ', of all patches' if target.loss_on == 'all' else ''
        return Card(
            'Masked autoencoder ([He et al., 2021](https://arxiv.org/abs/2111.06377)), pretrained',
            {
                'decoder': f'width {model.decoder_width}, depth {model.decoder_depth}, '
                f'{model.decoder_heads} heads',
                'masking': f'{config.mask.strategy}, {100 * config.mask.ratio:g}% hidden'
                + (', as mask tokens in the encoder' if model.encoder_mask_tokens else ''),
                'target': f'`{target.name}`{details}{everywhere}',
            },
            "output = model.apply({'params': params}, normalize(images), "
            "rngs={'mask': jax.random.key(0)})\n"
            'output.prediction, output.mask  # [B, N, P*P*C] and [B, N], True where hidden',
            needs_key=True,
        )

    def _apply(
        self, params: Any, model_state: Any, images: jax.Array, noise: jax.Array
    ) -> MAEOutput:
        target = None
        if self.tokenizer is not None and model_state is not None:
            target = self.tokens(model_state.get('tokenizer', {}), images)
        return self.model.apply({'params': params}, images, noise=noise, target=target)

    def _noise(self, key: jax.Array, batch_size: int) -> jax.Array:
        return self.model.masking.draw_noise(key, batch_size, self.grid)

    def _normalized(self, images: jax.Array | np.ndarray) -> jax.Array:
        return normalize(images, scale=self.scale, mean=self.mean, std=self.std)


def make_pretrain(config: ConfigDict, source: Any) -> Pretrain:
    """Makes the task of `task='pretrain'`. The training data `source` have no say in it.

    Raises:
      UserError: a field does not work; the message names it.
    """
    model = make_mae(config)
    return Pretrain(
        model,
        image_size(config),
        tokenizer=tokenizer_of(config),
        picture_every_steps=(config.image_every_steps or 0) if model.target.has_pixels else 0,
        online_probe=FrozenConfigDict(config.online_probe),
        probes_at_end=config.probe_at_end,
        **statistics(config),
    )


def tokenizer_of(config: ConfigDict) -> Tokenizer | None:
    """Makes the tokenizer whose tokens a config's model predicts; None for other targets."""
    target = config.target
    if target.name != 'token':
        return None
    grid = grid_size(image_size(config), make_architecture(config.model)['patch_size'])
    return make_tokenizer(
        target.tokenizer, codes=target.codes, grid=grid, channels=config.dataset.channels
    )
