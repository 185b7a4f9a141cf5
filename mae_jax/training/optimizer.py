"""Makes optimisers and learning rates, and selects the parameters that are trained and decayed."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from mae_jax.errors import UserError

Params = dict[str, Any]


SHAPES = ('cosine', 'linear', 'steps')
"""How a learning rate falls after its warm-up."""


def make_schedule(
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    minimum: float = 0.0,
    shape: str = 'cosine',
    warmup_from: float = 0.0,
    drop_at: Sequence[float] = (),
) -> optax.Schedule:
    """Makes a linear warm-up, then half a cosine over the steps *after* it to `minimum`.

    Evaluated at every optimiser step rather than every epoch, as in the original. The update from
    step s to s + 1 uses the value at s: the first update of a warm-up from 0 is zero.

    Args:
      shape: 'cosine'; 'linear' for a straight line in its place; or 'steps' for a rate that is
        constant but for dividing by ten at each share of the run in `drop_at`.
      warmup_from: where the warm-up begins, as a share of the peak.
      drop_at: ascending, between 0 and 1, of all steps, the warm-up included.

    Raises:
      UserError: `shape` is another, or a share is out of range.
    """
    if shape not in SHAPES:
        known = ', '.join(map(repr, SHAPES[:-1]))
        raise UserError(
            f"optimizer.schedule='{shape}' is unknown: choose {known} or {SHAPES[-1]!r}."
        )
    if not 0 <= warmup_from <= 1:
        raise UserError(f'optimizer.warmup_from={warmup_from} must be from 0 to 1, of the peak.')
    drop_at = tuple(drop_at)
    if list(drop_at) != sorted(drop_at) or not all(0 <= share <= 1 for share in drop_at):
        raise UserError(
            f'optimizer.drop_at={drop_at} must be ascending shares of the run, from 0 to 1.'
        )
    decay_steps = max(total_steps - warmup_steps, 1)
    drops = [round(share * total_steps) for share in drop_at]

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.clip((step - warmup_steps) / decay_steps, 0.0, 1.0)
        if shape == 'cosine':
            falling = minimum + (peak - minimum) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        elif shape == 'linear':
            falling = minimum + (peak - minimum) * (1.0 - done)
        else:
            falling = peak
            for drop in drops:
                falling = jnp.where(step >= drop, 0.1 * falling, falling)
        rising = peak * step / max(warmup_steps, 1)
        if warmup_from:
            rising = peak * warmup_from + (1.0 - warmup_from) * rising
        return jnp.where(step < warmup_steps, rising, falling)

    return schedule


def decays(params: Params) -> Params:
    """Selects parameters of two or more dimensions: class and mask tokens, but no bias or norm."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def decays_finetune(params: Params) -> Params:
    """Selects as `decays`, without class token and positions, as in the original's fine-tuning.

    Relative positions decay, as in BEiT's and ViTDet's code, which spare `pos_embed` alone by name.
    """

    def decays_at(path: tuple[jax.tree_util.DictKey, ...], p: jax.Array) -> bool:
        return p.ndim > 1 and path[-1].key not in ('cls_token', 'pos_embed')

    return jax.tree.map_with_path(decays_at, params)


def decays_but_norms(params: Params) -> Params:
    """Selects all, biases too, but norms, class token and absolute positions, as ViTDet does."""
    flat = traverse_util.flatten_dict(params, sep='/')
    norms = {name.rpartition('/')[0] for name in flat if name.endswith('/scale')}

    def decays_at(name: str) -> bool:
        module, _, leaf = name.rpartition('/')
        return module not in norms and leaf not in ('cls_token', 'pos_embed')

    return traverse_util.unflatten_dict({name: decays_at(name) for name in flat}, sep='/')


def layer_scales(params: Params, decay: float, depth: int) -> Params:
    """Computes the layer-wise decay of the learning rate, decay^(depth + 1 - layer).

    (Paper, appendix A.1.) Layer 0 holds the embeddings (patches, class token, positions), layer
    k + 1 block k, and layer depth + 1 all that follows the blocks: its scale is 1.

    Args:
      params: a classifier's parameters, or those of them that are trained.
      decay: between 0 and 1; 1 is no decay.
      depth: blocks of the encoder, trained or not.

    Returns:
      A float for every parameter, in the tree of `params`.
    """

    def layer(name: str) -> int:
        if block := re.match(r'encoder/blocks/block_(\d+)/', name):
            return int(block[1]) + 1
        embeddings = ('encoder/patch_embed', 'encoder/cls_token', 'encoder/pos_embed')
        return 0 if name.startswith(embeddings) else depth + 1

    names = traverse_util.flatten_dict(params, sep='/')
    scales = {name: decay ** (depth + 1 - layer(name)) for name in names}
    return traverse_util.unflatten_dict(scales, sep='/')


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    clip_norm: float | None = None,
    decay_mask: Callable[[Params], Params] = decays,
    scales: Callable[[Params], Params] | None = None,
) -> optax.GradientTransformation:
    """Makes AdamW or LARS.

    Args:
      name: 'adamw' or 'lars'.
      schedule: step -> learning rate.
      b1, b2, eps: of AdamW.
      weight_decay: of AdamW decoupled and multiplied by the learning rate, as PyTorch's is; of
        LARS added to the gradient.
      momentum, trust_coefficient: of LARS.
      clip_norm: greatest global norm of the gradient; None does not clip.
      decay_mask: parameters -> tree of bools: which ones decay.
      scales: parameters -> tree of floats, factors of their whole update, the decay included.

    Raises:
      UserError: `name` is no optimiser of this module.
    """
    if name == 'adamw':
        tx = optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)
    elif name == 'lars':
        tx = _lars(schedule, weight_decay, momentum, trust_coefficient, decay_mask)
    else:
        raise UserError(f"optimizer.name='{name}' is unknown: choose 'adamw' or 'lars'.")
    steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    steps += [tx, _scale_by(scales)] if scales else [tx]
    # A chain of one has another tree: the optimiser state of every checkpoint would change.
    return optax.chain(*steps) if len(steps) > 1 else tx


def _lars(
    schedule: optax.Schedule,
    weight_decay: float,
    momentum: float,
    trust_coefficient: float,
    decay_mask: Callable[[Params], Params],
) -> optax.GradientTransformation:
    """Makes LARS (You et al., arXiv 1708.03888) as the original uses it for linear probes.

    Two things differ from `optax.lars`: the learning rate multiplies what comes out of the
    momentum buffer, not what goes in, and vectors are plain momentum SGD.
    """
    trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.masked(trust, decays),  # by shape alone, whatever `decay_mask` spares
        optax.trace(momentum),
        optax.scale_by_learning_rate(schedule),
    )


def _scale_by(scales: Callable[[Params], Params]) -> optax.GradientTransformation:
    """Multiplies every update by its parameter's scale."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(jnp.multiply, updates, scales(params))
    )


def split_params(params: Params, is_trained: Callable[[str], bool]) -> tuple[Params, Params]:
    """Splits parameters into (trained, frozen) by names such as 'encoder/block_0/norm1/scale'.

    Frozen parameters cost neither gradient nor optimiser memory: the step differentiates, and the
    optimiser sees, the first tree alone.
    """
    flat = traverse_util.flatten_dict(params, sep='/')
    trained = {path: value for path, value in flat.items() if is_trained(path)}
    frozen = {path: value for path, value in flat.items() if path not in trained}
    return tuple(traverse_util.unflatten_dict(tree, sep='/') for tree in (trained, frozen))


def merge_params(trained: Params, frozen: Params) -> Params:
    """Inverts `split_params`; a parameter in both trees is taken from the second."""
    flat = [traverse_util.flatten_dict(tree, sep='/') for tree in (trained, frozen)]
    return traverse_util.unflatten_dict(flat[0] | flat[1], sep='/')
