"""Optimisers, the learning-rate schedule, and which parameters are trained and decayed at all."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import traverse_util

from mae_jax.errors import UserError

Params = dict[str, Any]


def make_schedule(
    *, peak: float, total_steps: int, warmup_steps: int = 0, minimum: float = 0.0
) -> optax.Schedule:
    """Linear from 0 over the warm-up, then half a cosine over the steps *after* it to `minimum`.

    As the original does, at every optimiser step rather than every epoch. The value at step s is
    used by the update that makes step s + 1 of it, so the first update of a warm-up is zero.
    """
    decay_steps = max(total_steps - warmup_steps, 1)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        done = jax.numpy.clip((step - warmup_steps) / decay_steps, 0.0, 1.0)
        cosine = minimum + (peak - minimum) * 0.5 * (1.0 + jax.numpy.cos(jax.numpy.pi * done))
        return jax.numpy.where(step < warmup_steps, peak * step / max(warmup_steps, 1), cosine)

    return schedule


def decays(params: Params) -> Params:
    """True for parameters of two or more dimensions: the class and mask tokens, no bias or norm."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    decay_mask: Callable[[Params], Params] = decays,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """AdamW with decoupled decay, multiplied by the learning rate as PyTorch's is.

    Raises:
      UserError: `name` is no optimiser of this module.
    """
    if name != 'adamw':
        raise UserError(f"optimizer.name='{name}' is unknown: choose 'adamw'.")
    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw


def split_params(params: Params, is_trained: Callable[[str], bool]) -> tuple[Params, Params]:
    """Parameters -> (trained, frozen), by 'encoder/block_0/norm1/scale'-like names.

    Frozen parameters cost neither gradient nor optimiser memory: the step differentiates, and the
    optimiser sees, the first tree alone.
    """
    flat = traverse_util.flatten_dict(params, sep='/')
    parts = ({}, {})
    for path, value in flat.items():
        parts[0 if is_trained(path) else 1][path] = value
    trained, frozen = (traverse_util.unflatten_dict(part, sep='/') for part in parts)
    return trained, frozen


def merge_params(trained: Params, frozen: Params) -> Params:
    """The inverse of `split_params`."""
    flat = [traverse_util.flatten_dict(part, sep='/') for part in (trained, frozen)]
    return traverse_util.unflatten_dict(flat[0] | flat[1], sep='/')
