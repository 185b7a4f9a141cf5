"""Estimates the memory of one training device from shapes; nothing is allocated or compiled."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Literal
from jax.sharding import AbstractMesh, Mesh

from mae_jax.models.options import EncoderOptions
from mae_jax.training.optimizer import merge_params, split_params
from mae_jax.training.state import TrainState
from mae_jax.training.task import Batch, Task


class Memory(NamedTuple):
    """Holds the bytes of one device while it computes a step, by what they are used for."""

    parameters: int
    optimizer_state: int
    """Includes the running average of the parameters, if there is one, and model state."""
    gradients: int
    batch: int
    """The batch as it was loaded, and as `task.prepare` returns it."""
    weight_copies: int
    """Weights kept for the backward pass: cast to bfloat16, gathered from devices, or stacked."""
    activations: int
    """Kept for the backward pass of one micro-batch: an estimate, see `Residuals`."""

    @property
    def total(self) -> int:
        """Returns the sum, as if all of it were held at the same time."""
        return sum(self)


def count_memory(
    task: Task, state: TrainState, batch: Batch, mesh: Mesh | AbstractMesh, accumulate: int = 1
) -> Memory:
    """Counts the bytes of one device.

    Args:
      state: shapes with shardings, as `abstract_state` returns them.
      batch: shapes of a global batch, as it is loaded.
      accumulate: number of micro-batches of a step.
    """
    loaded, prepared = slice_batch(batch, mesh.size), prepare_batch(task, batch)
    slices = mesh.size * accumulate
    blocks, fsdp = with_blocks(task.model), mesh.shape['fsdp']
    residuals = count_residuals(task, batch, slices)
    # Gathered weights are kept whole, in the dtype of products: XLA does not gather them again.
    gathered = residuals.weights * jnp.dtype(blocks.dtype).itemsize // 4 if fsdp > 1 else 0
    copies = residuals.weight_copies + gathered
    # One more copy for the sum over micro-batches, and one as the output of a loop over blocks.
    gradients = 1 + (accumulate > 1) + blocks.scan
    trained, _ = split_params(state.params, task.is_trained)
    return Memory(
        parameters=count_bytes(state.params),
        optimizer_state=count_bytes((state.opt_state, state.model_state, state.ema)),
        gradients=gradients * count_bytes(trained),
        batch=count_bytes((loaded, slice_batch(prepared, mesh.size))),
        weight_copies=copies,
        activations=residuals.activations + count_recomputed(task, batch, slices),
    )


class Residuals(NamedTuple):
    """Holds the bytes that autodiff keeps for the backward pass, before XLA fuses operations."""

    activations: int
    """Arrays that depend on images."""
    weight_copies: int
    """Arrays computed from weights alone: cast to another dtype, or stacked for a scan."""
    weights: int
    """The weights themselves, which take no extra memory on a device that holds all of them."""


def count_residuals(task: Task, batch: Batch, slices: int) -> Residuals:
    """Counts the residuals of `jax.vjp` of the loss.

    Args:
      batch: shapes of a global batch.
      slices: number of equal slices of the batch, one for each device and micro-batch; the
        residuals are those of a single slice.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = jax.eval_shape(task.init, key)
    trained, frozen = split_params(params, task.is_trained)
    rows = slice_batch(prepare_batch(task, batch), slices)

    def residuals(rows, trained, frozen, model_state, key):
        def loss(trained):
            return task.loss(merge_params(trained, frozen), model_state, rows, key)[0]

        return jax.tree.leaves(jax.vjp(loss, trained)[1])

    jaxpr = jax.make_jaxpr(residuals)(rows, trained, frozen, model_state, key).jaxpr
    inputs = {*jaxpr.invars, *jaxpr.constvars}
    of_images = set(jaxpr.invars[: len(rows)])
    for equation in jaxpr.eqns:
        if not of_images.isdisjoint(_variables(equation.invars)):
            of_images.update(equation.outvars)
    kept = _variables(jaxpr.outvars)
    computed = kept - inputs
    groups = computed & of_images, computed - of_images, kept & inputs - of_images
    return Residuals(*(sum(v.aval.size * v.aval.dtype.itemsize for v in group) for group in groups))


def count_recomputed(task: Task, batch: Batch, slices: int) -> int:
    """Counts the bytes that the backward pass holds of the one block that it computes again.

    With `remat` a block's residuals exist only while its own gradient is computed; the largest
    block decides. They are the difference between models of two blocks and of one, without `remat`.
    """
    blocks = with_blocks(task.model)
    if blocks.remat == 'none':
        return 0
    options = dict(remat='none', scan=False)
    if hasattr(blocks, 'frozen_blocks'):
        options['frozen_blocks'] = 0
    if getattr(blocks, 'options', EncoderOptions()).global_blocks:  # the larger ones
        options['options'] = dataclasses.replace(blocks.options, window=0, global_blocks=())
    ones = {name: 1 for name in ('depth', 'decoder_depth') if getattr(blocks, name, 0)}

    def activations(sizes: Mapping[str, int]) -> int:
        model = blocks.clone(**options | sizes)
        if blocks is not task.model:  # heads, which see the output of some of them
            taps = getattr(task.model, 'taps', None)
            taps = {} if taps is None else dict(taps=(0,) * len(taps))
            model = task.model.clone(encoder=model, **taps)
        return count_residuals(dataclasses.replace(task, model=model), batch, slices).activations

    return max(activations(ones | {name: 2}) for name in ones) - activations(ones)


def with_blocks(model: nn.Module) -> nn.Module:
    """Returns the module that has the transformer's fields: a model itself, or its encoder."""
    return model if hasattr(model, 'remat') else model.encoder


def slice_batch(batch: Batch, slices: int) -> Batch:
    """Returns the shapes of one of `slices` equal slices of a batch."""
    return {
        name: jax.ShapeDtypeStruct((rows.shape[0] // slices, *rows.shape[1:]), rows.dtype)
        for name, rows in batch.items()
    }


def prepare_batch(task: Task, batch: Batch) -> Batch:
    """Returns the shapes of a batch as `task.prepare` passes it to the loss."""
    return jax.eval_shape(task.prepare, batch, jax.eval_shape(lambda: jax.random.key(0)))


def count_bytes(tree: Any) -> int:
    """Counts the bytes of one device's shards; of the whole array where it has no sharding."""

    def shape(array: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        return array.sharding.shard_shape(array.shape) if array.sharding else array.shape

    return sum(math.prod(shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
