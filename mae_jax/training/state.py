"""The train state, and the step that updates it: one compiled function for every task."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh

from mae_jax.keys import key_for
from mae_jax.training import sharding
from mae_jax.training.optimizer import merge_params, split_params
from mae_jax.training.task import Task

Metrics = dict[str, jax.Array]

ACCUMULATE, OPTIMIZER = 'accumulate', 'optimizer'
"""Scopes by which profiles and `mae-jax plan --compile` know the loop over micro-batches, and the
update."""


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; with (config, data) it determines the rest of a run.

    `step` counts finished updates. `opt_state` covers the trained parameters only. `model_state`
    holds what is neither (running statistics); `{}` where there is none. `ema` is the average of
    the parameters that an `AveragingState` keeps.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema = None  # no field: Orbax would store a None too, and refuse checkpoints without it


@flax.struct.dataclass
class AveragingState(TrainState):
    """A `TrainState` with `ema`, the running average of the trained parameters, float32."""

    ema: Any


def initial_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema_decay: float | None = None,
) -> TrainState:
    """Initialises the state; traced by `abstract_state` and jitted by `create_state`.

    With `ema_decay`, the average starts from the initial parameters.
    """
    params, model_state = task.init(key_for(seed, 'init'))
    trained, _ = split_params(params, task.is_trained)
    fields = jnp.zeros((), jnp.int32), params, model_state, optimizer.init(trained)
    if ema_decay is None:
        return TrainState(*fields)
    return AveragingState(*fields, ema=_average_from(trained))


def replace_params(state: TrainState, params: Any) -> TrainState:
    """Returns the state with other parameters, from which its average starts again.

    `params` include the frozen ones, as `state.params` do.
    """
    if state.ema is None:
        return state.replace(params=params)
    average = jax.jit(_average_from, out_shardings=_shardings(state.ema))
    return state.replace(params=params, ema=average(_averaged(state, params)))


def evaluation_params(state: TrainState) -> Any:
    """Returns the parameters to evaluate with: their averages where they are kept.

    Averages are laid out as the parameters are.
    """
    if state.ema is None:
        return state.params
    wanted, ema = _shardings(_averaged(state, state.params)), state.ema
    if _shardings(ema) != wanted:
        ema = jax.jit(lambda ema: ema, out_shardings=wanted)(ema)
    return merge_params(state.params, ema)


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def _averaged(state: TrainState, params: Any) -> Any:
    """Returns those parameters of which the state keeps an average."""
    names = traverse_util.flatten_dict(state.ema, sep='/')
    return split_params(params, names.__contains__)[0]


def _average_from(params: Any) -> Any:
    """Copies, because a step is given the state's buffers, and none may be given twice."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)


def state_shardings(mesh: Mesh | AbstractMesh, state: TrainState) -> TrainState:
    """Returns a NamedSharding for every array of a state.

    Every device needs the parameters; what only the update needs is split over all of them.
    """
    shardings = sharding.parameter_shardings(mesh, state)
    shardings = shardings.replace(opt_state=sharding.update_shardings(mesh, state.opt_state))
    if state.ema is None:
        return shardings
    return shardings.replace(ema=sharding.update_shardings(mesh, state.ema))


def abstract_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    *,
    ema_decay: float | None = None,
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, without computing it."""
    shapes = jax.eval_shape(lambda: initial_state(task, optimizer, 0, ema_decay=ema_decay))
    shardings = state_shardings(mesh, shapes)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def create_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    *,
    ema_decay: float | None = None,
) -> TrainState:
    """Initialises into shards: no device ever holds all parameters of a large model."""
    target = abstract_state(task, optimizer, mesh, ema_decay=ema_decay)
    shardings = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(
        lambda: initial_state(task, optimizer, seed, ema_decay=ema_decay), out_shardings=shardings
    )()


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    ema_decay: float | None = None,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Makes the pure update (state, batch) -> (state, metrics); `jit_step` compiles it for a mesh.

    `ema_decay` is the share of itself that the average of the parameters keeps at each step; None
    keeps no average; the state must have been made with the same. With `skip_nonfinite` a step
    whose loss or gradient is not finite changes nothing but `step` and the place of the learning
    rate in its schedule.

    Metrics are float32 scalars: the task's own, `loss`, and the global norms of gradient, update
    and trained parameters.
    """

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        if (state.ema is None) != (ema_decay is None):
            raise ValueError('State and step must agree on whether parameters are averaged.')
        key = key_for(seed, 'train', state.step)
        trained, frozen = split_params(state.params, task.is_trained)

        def loss(trained, model_state, batch, key):
            params = merge_params(trained, frozen)
            value, metrics, model_state = task.loss(params, model_state, batch, key)
            return value, ({'loss': value} | metrics, model_state)

        gradient = accumulated(jax.grad(loss, has_aux=True), accumulate)
        batch = task.prepare(batch, key)  # draws for the whole batch, before it is split
        grads, (metrics, model_state) = gradient(trained, state.model_state, batch, key)
        with jax.named_scope(OPTIMIZER):
            # Not at once, or else XLA would reduce within the loop over micro-batches, or cut the
            # products that compute gradients into pieces.
            grads = sharding.split_as_parameters(grads)
            grads, before = sharding.split_for_update((grads, trained))
            updates, opt_state = optimizer.update(grads, state.opt_state, before)
            trained = optax.apply_updates(before, updates)
            metrics |= {
                'grad_norm': optax.tree.norm(grads),
                'update_norm': optax.tree.norm(_after(trained, updates)),
                'param_norm': optax.tree.norm(before),
            }
        old = state
        state = state.replace(
            step=state.step + 1,
            params=merge_params(trained, frozen),
            model_state=model_state,
            opt_state=opt_state,
        )
        if ema_decay is not None:
            ema = optax.incremental_update(trained, state.ema, step_size=1 - ema_decay)
            state = state.replace(ema=ema)
        if skip_nonfinite:
            finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
            state = _chosen(finite, state, old)
        return state, metrics

    return step


def _after(trained: Any, updates: Any) -> Any:
    """Returns the updates, as values that depend on the sums with them.

    XLA then computes moments, sums and norms of an array in one pass over memory. Without, it
    computes the norms with the moments, reads all again for the sums, and keeps gradients in
    memory that it could add up and use at once.
    """
    return jax.tree.map(lambda p, u: jnp.where(jnp.isnan(p), p, u), trained, updates)


def _chosen(finite: jax.Array, after: TrainState, before: TrainState) -> TrainState:
    """Returns `after` where `finite`, else `before`; what counts steps always goes on."""

    def is_clock(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def choose(new: Any, old: Any) -> Any:
        return new if is_clock(new) else jnp.where(finite, new, old)

    chosen = jax.tree.map(choose, after, before, is_leaf=is_clock)
    return chosen.replace(step=after.step)


def accumulated(gradient: Callable, micro_batches: int) -> Callable:
    """Averages `gradient` and its metrics over micro-batches, one after the other.

    Every row has the same weight, as in the mean over the whole batch.
    """
    if micro_batches == 1:
        return gradient

    def averaged(trained, model_state, batch, key):
        def add(carry, micro):
            total, model_state = carry
            index, rows = micro
            grads, (metrics, model_state) = gradient(
                trained, model_state, rows, jax.random.fold_in(key, index)
            )
            total = jax.tree.map(jnp.add, total, (grads, metrics))
            return (total, model_state), None

        split = jax.tree.map(lambda rows: sharding.split_rows(rows, micro_batches), batch)
        micro = (jnp.arange(micro_batches), split)
        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(gradient, trained, model_state, first[1], key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
        with jax.named_scope(ACCUMULATE):
            (total, model_state), _ = jax.lax.scan(add, (zeros, model_state), micro)
        grads, metrics = jax.tree.map(lambda x: x / micro_batches, total)
        return grads, (metrics, model_state)

    return averaged


def jit_step(step: Callable, mesh: Mesh, state: TrainState) -> Callable:
    """Compiles `step` over the mesh; the state it is given is donated: use the one it returns."""
    shardings = state_shardings(mesh, state)
    return jax.jit(
        sharding.on_mesh(step, mesh),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
