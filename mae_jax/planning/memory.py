"""Bytes of one device while it trains, from shapes alone: nothing is allocated or compiled."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal
from jax.sharding import AbstractMesh, Mesh

from mae_jax.training.optimizer import merge_params, split_params
from mae_jax.training.state import TrainState
from mae_jax.training.task import Batch, Task


class Memory(NamedTuple):
    """Bytes of one device while it computes a step."""

    parameters: int
    optimizer_state: int
    """With the average of the parameters, where one is kept, and running statistics."""
    gradients: int
    batch: int
    """As loaded, and as prepared."""
    weight_copies: int
    """Kept for the backward pass: weights in bfloat16, gathered from other devices or stacked."""
    activations: int
    """Kept for the backward pass, of one micro-batch: an estimate, see `Kept`."""

    @property
    def total(self) -> int:
        return sum(self)


def count_memory(
    task: Task, state: TrainState, batch: Batch, mesh: Mesh | AbstractMesh, accumulate: int = 1
) -> Memory:
    """Bytes of one device, from the shapes of a global batch; all is as if held at once."""
    device = share(batch, mesh.size), share(prepared(task, batch), mesh.size)
    scan, fsdp = task.model.scan, mesh.shape['fsdp']
    kept = kept_bytes(task, batch, mesh.size * accumulate)
    if scan:  # every device stacks its own shards
        copies = kept.weight_copies // fsdp
    else:  # what is not all its own it gathers, and keeps: XLA does not gather it twice
        copies = kept.weight_copies + (kept.weights if fsdp > 1 else 0)
    # A copy more for their sum over micro-batches, and one as they come out of a loop over blocks.
    gradients = 1 + (accumulate > 1) + scan
    trained, _ = split_params(state.params, task.is_trained)
    return Memory(
        parameters=device_bytes(state.params),
        optimizer_state=device_bytes((state.opt_state, state.model_state, state.ema)),
        gradients=gradients * device_bytes(trained),
        batch=device_bytes(device),
        weight_copies=copies,
        activations=kept.activations + recomputed_bytes(task, batch, mesh.size * accumulate),
    )


class Kept(NamedTuple):
    """Bytes that autodiff keeps for the backward pass, before XLA fuses anything."""

    activations: int
    """What depends on images."""
    weight_copies: int
    """Made of weights alone: cast to another dtype, stacked for a scan."""
    weights: int
    """Weights as they are: no bytes of their own on a device that has the whole of them."""


def kept_bytes(task: Task, batch: Batch, parts: int) -> Kept:
    """What is kept of one of so many parts of a batch: the residuals of `jax.vjp` of the loss."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = jax.eval_shape(task.init, key)
    trained, frozen = split_params(params, task.is_trained)
    rows = share(prepared(task, batch), parts)

    def residuals(rows, trained, frozen, model_state, key):
        def loss(trained):
            return task.loss(merge_params(trained, frozen), model_state, rows, key)[0]

        return jax.tree.leaves(jax.vjp(loss, trained)[1])

    jaxpr = jax.make_jaxpr(residuals)(rows, trained, frozen, model_state, key).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    of_images = set(jaxpr.invars[: len(rows)])
    for equation in jaxpr.eqns:
        if not of_images.isdisjoint(_variables(equation.invars)):
            of_images.update(equation.outvars)
    kept = _variables(jaxpr.outvars)
    sets = kept & of_images - given, kept - of_images - given, kept & given - of_images
    return Kept(*(sum(v.aval.size * v.aval.dtype.itemsize for v in found) for found in sets))


def recomputed_bytes(task: Task, batch: Batch, parts: int) -> int:
    """What the backward pass holds of the block it computes again, at most."""
    if task.model.remat == 'none':
        return 0
    options = dict(remat='none', scan=False)
    if hasattr(task.model, 'frozen_blocks'):
        options['frozen_blocks'] = 0
    ones = {name: 1 for name in ('depth', 'decoder_depth') if getattr(task.model, name, 0)}

    def kept(sizes: Mapping[str, int]) -> int:
        model = task.model.clone(**options | sizes)
        return kept_bytes(dataclasses.replace(task, model=model), batch, parts).activations

    return max(kept(ones | {name: 2}) for name in ones) - kept(ones)


def share(batch: Batch, parts: int) -> Batch:
    """Shapes of one of so many equal parts of a batch."""
    return {
        name: jax.ShapeDtypeStruct((rows.shape[0] // parts, *rows.shape[1:]), rows.dtype)
        for name, rows in batch.items()
    }


def prepared(task: Task, batch: Batch) -> Batch:
    """Shapes of the batch that the loss is given."""
    return jax.eval_shape(task.prepare, batch, jax.eval_shape(lambda: jax.random.key(0)))


def device_bytes(tree: Any) -> int:
    """Bytes of one device's shards; of the whole where an array has no sharding."""

    def shape(array: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        return array.sharding.shard_shape(array.shape) if array.sharding else array.shape

    return sum(math.prod(shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
