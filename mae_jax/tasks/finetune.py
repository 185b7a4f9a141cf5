"""What all tasks that train a pretrained encoder share: which parameters learn, and how fast."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mae_jax.config.data import check_classes
from mae_jax.errors import UserError
from mae_jax.models.classifier import Classifier
from mae_jax.models.flops import encoder_flops
from mae_jax.models.patches import grid_size
from mae_jax.models.vit import Encoder
from mae_jax.tasks.preprocess import normalize
from mae_jax.training.optimizer import Params, decays_finetune, layer_scales, make_optimizer
from mae_jax.training.task import Task, optimizer_fields


class FineTuning(Task):
    """A `Task` whose model has an encoder that was pretrained: the base of dataclasses.

    Attributes:
      image_size: height and width of training images.
      mean, std, scale: as of `normalize`.
      trained: as of `learns`.
      layer_decay: factor between the learning rates of neighbouring layers; 1 for none.
      decay_mask: which parameters decay.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    trained: str | float = 'all'
    layer_decay: float = 1.0
    decay_mask: ClassVar[Callable[[Params], Params]] = staticmethod(decays_finetune)

    @property
    def encoder(self) -> Encoder | Classifier:
        """Returns the module with the fields of the encoder."""
        return self.model.encoder

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        images = jnp.zeros((1, *self.image_size, len(self.mean)))
        variables = dict(self.model.init(key, images))
        return variables.pop('params'), variables

    def is_trained(self, path: str) -> bool:
        return learns(path, self.trained, self.encoder.depth)

    def is_required(self, path: str) -> bool:
        """Requires the encoder alone: heads may differ."""
        return of_encoder(path)

    def check_data(self, source: Any, held_out: Any) -> None:
        check_classes(source, held_out)

    def make_optimizer(
        self, fields: ConfigDict, schedule: optax.Schedule
    ) -> optax.GradientTransformation:
        """Decays what `decay_mask` selects; scales updates by `layer_decay`."""
        extra, depth = {}, self.encoder.depth
        if self.layer_decay != 1:
            extra['scales'] = lambda params: layer_scales(params, self.layer_decay, depth)
        return make_optimizer(
            fields.name,
            schedule,
            momentum=fields.momentum,
            trust_coefficient=fields.trust_coefficient,
            decay_mask=self.decay_mask,
            **optimizer_fields(fields),
            **extra,
        )

    def untrained_warning(self, config: ConfigDict) -> str | None:
        if self.trained == 'all':  # from scratch
            return None
        return f'init_from is unset: trained={config.trained} on top of an untrained encoder'

    def how_trained(self, config: ConfigDict) -> str:
        """Says in a few words what learned, for titles."""
        if self.trained == 'all':
            return 'fine-tuned' if config.init_from else 'trained from scratch'
        if self.trained == 'head':
            return 'trained on a frozen encoder'
        return f'fine-tuned with the last {config.trained} block(s)'

    def encoder_flops(self) -> float:
        """Counts the encoder's forward pass for an image, and twice the blocks that learn."""
        encoder = self.encoder
        grid = grid_size(self.image_size, encoder.patch_size)
        tokens = grid[0] * grid[1] + encoder.options.cls_token
        embedding = 2 * tokens * encoder.patch_size**2 * len(self.mean) * encoder.width
        count = partial(encoder_flops, width=encoder.width, grid=grid, options=encoder.options)
        forward = embedding + count(range(encoder.depth))
        backward = 2 * count(range(encoder.frozen_blocks, encoder.depth))
        if self.trained == 0.5:  # an MLP whose own input needs no gradient: 3 products of 4
            backward = 24.0 * tokens * encoder.width**2
        return forward + backward

    def normalized(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Normalises images as they were loaded."""
        return normalize(images, scale=self.scale, mean=self.mean, std=self.std)


HEADS = ('head', 'auxiliary', 'pyramid', 'proposals', 'box_head', 'mask_head')
"""Modules that learn with trained='head'."""


def parse_trained(trained: str, depth: int) -> str | float:
    """Reads `config.trained`: 'all', 'head', or a number of blocks, where all blocks are 'all'.

    Raises:
      UserError: it is none of these, or more blocks than there are.
    """
    if trained in ('all', 'head'):
        return trained
    try:
        blocks = float(trained)
    except ValueError:
        blocks = -1.0
    if blocks != 0.5 and (blocks < 0 or blocks % 1):
        raise UserError(
            f"trained='{trained}' is unknown: choose 'all', 'head', or how many of the last blocks "
            '(0, 0.5 for the MLP of the last one, 1, 2, ...).'
        )
    if blocks > depth:
        raise UserError(f'trained={trained} blocks, but the model has {depth}: choose fewer.')
    return 'all' if blocks == depth else blocks


def frozen_blocks(trained: str | float, depth: int) -> int:
    """Returns how many of the first blocks need no gradient; `trained` is that of `learns`."""
    return depth - math.ceil({'all': depth, 'head': 0}.get(trained, trained))


def check_layer_decay(decay: float) -> None:
    """Raises a UserError for a decay that is out of range."""
    if not 0 < decay <= 1:
        raise UserError(f'optimizer.layer_decay={decay} must be above 0, and at most 1 for none.')


def check_finetuning(config: ConfigDict, shares: Mapping[str, float]) -> None:
    """Raises a UserError for one of `shares`, or a field of all such tasks, that is out of range.

    Args:
      shares: name of a further field -> its value.
    """
    for field, share in {**shares, 'ema_decay': config.ema_decay or 0.0}.items():
        if not 0 <= share <= 1:
            raise UserError(f'{field}={share} must be from 0 to 1, a share or a probability.')
    for field in ('drop_path', 'head_dropout'):
        if not 0 <= config.model.get(field, 0.0) < 1:
            raise UserError(f'model.{field}={config.model[field]} must be at least 0 and below 1.')
    check_layer_decay(config.optimizer.layer_decay)


def of_encoder(path: str) -> bool:
    """Returns whether every encoder has a parameter of this name.

    With mean pooling it has no norm, and only some were pretrained with a mask token.
    """
    return path.startswith('encoder/') and not path.startswith(
        ('encoder/norm/', 'encoder/mask_token')
    )


def learns(path: str, trained: str | float, depth: int) -> bool:
    """Returns whether a parameter of this name learns (paper, Figure 9).

    Args:
      path: name, such as 'encoder/blocks/block_0/mlp/fc1/kernel'.
      trained: 'all', 'head', or how many of the last blocks; 0.5 is the MLP of the last one.
      depth: blocks of the encoder.
    """
    if trained == 'all':
        return True
    part, *rest = path.split('/')
    if trained == 'head':
        return part in HEADS
    if part != 'encoder' or rest[0] == 'norm':  # what follows the blocks
        return True
    if rest[0] != 'blocks':
        return False
    block = int(rest[1].removeprefix('block_'))
    if trained == 0.5:
        return block == depth - 1 and rest[2] == 'mlp'
    return block >= depth - trained
