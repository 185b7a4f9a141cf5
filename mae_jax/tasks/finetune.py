"""What all tasks that train a pretrained encoder share: which parameters learn, and how fast."""

import math

import optax
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.training.optimizer import decays_finetune, layer_scales, make_optimizer
from mae_jax.training.task import optimizer_fields


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
        raise UserError(f'optimizer.layer_decay={decay} must be in (0, 1].')


def make_finetuning_optimizer(
    fields: ConfigDict, schedule: optax.Schedule, layer_decay: float, depth: int
) -> optax.GradientTransformation:
    """Spares class token and positions from weight decay; scales updates by `layer_decay`.

    Args:
      fields: `config.optimizer`.
      schedule: step -> learning rate.
      layer_decay: factor between the learning rates of neighbouring layers; 1 for none.
      depth: blocks of the encoder.
    """
    extra = {}
    if layer_decay != 1:
        extra['scales'] = lambda params: layer_scales(params, layer_decay, depth)
    return make_optimizer(
        fields.name,
        schedule,
        momentum=fields.momentum,
        trust_coefficient=fields.trust_coefficient,
        decay_mask=decays_finetune,
        **optimizer_fields(fields),
        **extra,
    )


def untrained_warning(trained: str | float, config: ConfigDict) -> str | None:
    """Returns what to print where nothing is loaded; None where all is trained from scratch."""
    if trained == 'all':
        return None
    return f'init_from is unset: trained={config.trained} on top of an untrained encoder'


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
        return part in ('head', 'auxiliary')
    if part != 'encoder' or rest[0] == 'norm':  # what follows the blocks
        return True
    if rest[0] != 'blocks':
        return False
    block = int(rest[1].removeprefix('block_'))
    if trained == 0.5:
        return block == depth - 1 and rest[2] == 'mlp'
    return block >= depth - trained
