"""Evaluation and pictures while a run trains."""

from collections.abc import Callable
from typing import Any

import numpy as np
from clu.metrics import Collection

from mae_jax.config.data import eval_batch_size, eval_passes
from mae_jax.evaluation.exact import make_evaluate
from mae_jax.experiment.setup import Setup
from mae_jax.training.loop import Hook
from mae_jax.training.state import TrainState, evaluation_params

Evaluate = Callable[[TrainState], Collection]


def make_evaluation(setup: Setup, alive: Callable[[], None] = lambda: None) -> Evaluate:
    """Makes the evaluation on `eval_examples` held-out images, evenly spread, or all of them."""
    config, held_out = setup.config, setup.held_out
    examples = min(config.eval_examples or len(held_out), len(held_out))
    batch_size = eval_batch_size(config, setup.mesh, examples)
    passes = eval_passes(
        config, held_out, setup.mesh, batch_size, examples, alive, setup.task.check
    )
    evaluate = make_evaluate(setup.task, setup.mesh, passes, batch_size)
    return lambda state: setup.task.conclude(evaluate(state), held_out)


def evaluation_hook(evaluate: Evaluate, *, every_steps: int, early: bool = True) -> Hook:
    """Logs every scalar metric of an evaluation as `eval/<name>`."""

    def run(step: int, state: TrainState) -> dict[str, float]:
        values = evaluate(state).compute()
        return {f'eval/{name}': float(x) for name, x in values.items() if not np.ndim(x)}

    return Hook(every_steps, run, early)


def picture_hook(
    draw: Callable[[Any, Any], np.ndarray],
    show: Callable[[int, str, np.ndarray], None],
    *,
    every_steps: int,
    name: str = 'reconstruction',
) -> Hook:
    """Shows what a task draws with its current parameters, under a name."""

    def run(step: int, state: TrainState) -> dict[str, float]:
        show(step, name, draw(evaluation_params(state), state.model_state))
        return {}

    return Hook(every_steps, run, early=True)
