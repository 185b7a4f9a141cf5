"""The train state and the jitted step: one compiled function for every task."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mae_jax.keys import key_for
from mae_jax.tasks.task import Task
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.optimizer import merge_params, split_params

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a step changes; with (config, data) it is the whole of a run.

    `step` counts finished updates. `opt_state` covers the trained parameters only. `model_state`
    holds what is neither (running statistics); `{}` where there is none.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any


def initial_state(task: Task, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; traced by `abstract_state` and jitted by `create_state`."""
    params, model_state = task.init(key_for(seed, 'init'))
    trained, _ = split_params(params, task.is_trained)
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(trained))


def abstract_state(task: Task, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it."""
    shapes = jax.eval_shape(lambda: initial_state(task, optimizer, 0))
    shardings = mesh_lib.state_shardings(mesh, shapes)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def create_state(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
    """Initialises straight into shards, so that no device ever holds the whole of a large model."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(task, optimizer, mesh))
    return jax.jit(lambda: initial_state(task, optimizer, seed), out_shardings=shardings)()


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The pure update (state, batch) -> (state, metrics); `jit_step` compiles it over a mesh.

    Metrics are float32 scalars: the task's own, `loss`, and the global norms of gradient, update
    and trained parameters.
    """

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = key_for(seed, 'train', state.step)
        trained, frozen = split_params(state.params, task.is_trained)

        def loss(trained, model_state, batch, key):
            params = merge_params(trained, frozen)
            value, metrics, model_state = task.loss(params, model_state, batch, key)
            return value, ({'loss': value} | metrics, model_state)

        gradient = accumulated(jax.grad(loss, has_aux=True), accumulate)
        batch = task.prepare(batch, key)  # draws for the whole batch, before it is split
        grads, (metrics, model_state) = gradient(trained, state.model_state, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        metrics |= {
            'grad_norm': optax.tree.norm(grads),
            'update_norm': optax.tree.norm(updates),
            'param_norm': optax.tree.norm(trained),
        }
        params = merge_params(optax.apply_updates(trained, updates), frozen)
        return TrainState(state.step + 1, params, model_state, opt_state), metrics

    return step


def accumulated(gradient: Callable, micro_batches: int) -> Callable:
    """Averages `gradient` and its metrics over micro-batches, one after the other.

    Row r of the batch goes to micro-batch r mod `micro_batches`, so that every device splits its
    own rows and none travels. Every row weighs the same, as the mean over the whole batch has it.
    """
    if micro_batches == 1:
        return gradient

    def averaged(trained, model_state, batch, key):
        def split(rows):
            rows = rows.reshape(rows.shape[0] // micro_batches, micro_batches, *rows.shape[1:])
            return jnp.moveaxis(rows, 1, 0)

        def add(carry, micro):
            total, model_state = carry
            index, rows = micro
            grads, (metrics, model_state) = gradient(
                trained, model_state, rows, jax.random.fold_in(key, index)
            )
            total = jax.tree.map(jnp.add, total, (grads, metrics))
            return (total, model_state), None

        micro = (jnp.arange(micro_batches), jax.tree.map(split, batch))
        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(gradient, trained, model_state, first[1], key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
        (total, model_state), _ = jax.lax.scan(add, (zeros, model_state), micro)
        grads, metrics = jax.tree.map(lambda x: x / micro_batches, total)
        return grads, (metrics, model_state)

    return averaged


def jit_step(step: Callable, mesh: Mesh, state: TrainState) -> Callable:
    """Compiles `step` over the mesh; the state it is given is donated: use the one it returns."""
    shardings = mesh_lib.state_shardings(mesh, state)
    return jax.jit(
        step,
        in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
        donate_argnums=0,
    )
