"""What is learned: a file a task, with its loss, evaluation, optimiser and report.

Tasks may import `config` and everything below it; the loop in `training` knows them by the class
`training.task.Task` alone. Start with `pretrain.py`. A task of one's own is looked up by
`task='module:function'`, see docs/extending.md.
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from mae_jax.registry import Registry
from mae_jax.training.task import Task

TASKS = Registry(
    'task',
    'task',
    {
        'pretrain': 'mae_jax.tasks.pretrain:make_pretrain',
        'classify': 'mae_jax.tasks.classify_fields:make_classify',
        'detect': 'mae_jax.tasks.detect_fields:make_detect',
        'segment': 'mae_jax.tasks.segment_fields:make_segment',
    },
)
"""Name -> function (config, training source) -> `Task`."""


def make_task(config: ConfigDict, source: Any) -> Task:
    """Makes the task of a config.

    Args:
      config: of the run.
      source: its training data, which state the number of classes.

    Raises:
      UserError: a field does not work; the message names it.
    """
    task = TASKS.get(config.task)(config, source)
    jax.eval_shape(task.init, jax.random.key(0))  # every mistake of shape shows, at no cost
    return task
