"""Where metrics go besides the console and metrics.jsonl: loggers, by name."""

import importlib.util
import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from mae_jax.errors import UserError, brief
from mae_jax.registry import Registry


class Logger(Protocol):
    """Receives the metrics of a run, in one process. Its methods may raise any error."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs scalars under a step; steps never decrease."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Ends the log; nothing is logged afterwards."""


LOGGERS = Registry(
    'metric logger',
    'loggers',
    {
        'tensorboard': 'mae_jax.training.tensorboard:Board',
        'wandb': 'mae_jax.training.weights_and_biases:WeightsAndBiases',
        'mlflow': 'mae_jax.training.mlflow_runs:MlflowRun',
    },
)
"""Name -> function (workdir, start_step, config) -> `Logger`.

A run that is resumed opens its loggers again with the step it goes on from: whatever was logged for
later steps is logged anew.
"""
EXTRAS = ('wandb', 'mlflow')
"""Loggers that need a package of the same name, which an extra of the same name installs."""


class Loggers:
    """The loggers of a run: opened when there is something to log, and unable to end the run.

    What a logger raises is reported once, and nothing more goes to it until the next start.
    """

    def __init__(
        self,
        names: Sequence[str],
        workdir: str | os.PathLike,
        start_step: int,
        config: Any,
        say: Callable[[str], None],
    ):
        """Looks the loggers up by name, or by 'module:function', and opens none.

        Raises:
          UserError: there is no such logger, or its package is not installed.
        """
        for name in names:
            if name in EXTRAS and not importlib.util.find_spec(name):
                raise UserError(f"loggers='{name}' needs {name}: pip install 'mae_jax[{name}]'.")
        self._make = {name: LOGGERS.get(name) for name in names}
        self._arguments = (workdir, start_step, config)
        self._say = say
        self._opened: dict[str, Logger] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs scalars with every logger."""
        self._each(lambda logger: logger.scalars(step, values))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Logs a picture with every logger."""
        self._each(lambda logger: logger.image(step, name, pixels))

    def close(self) -> None:
        """Closes the loggers that were opened."""
        self._make = {name: self._make[name] for name in self._opened}
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name in list(self._make):
            try:
                if name not in self._opened:
                    self._opened[name] = self._make[name](*self._arguments)
                call(self._opened[name])
            except Exception as error:  # of a library, a service, a disk, or the user's own
                del self._make[name]
                self._opened.pop(name, None)
                self._say(
                    f'the logger {name!r} failed and gets nothing more ({brief(error)}); '
                    'metrics.jsonl has everything'
                )


SPEED = ('images_per_second', 'images_per_second_per_device', 'input_wait', 'mfu', 'eta_seconds')
OPTIMIZER = ('grad_norm', 'learning_rate', 'param_norm', 'update_norm')


def grouped(name: str) -> str:
    """Returns the name of a metric with its group first: eval/, probe/, speed/ or train/.

    The names of metrics.jsonl have a group only for eval/ and probe/. The training loss is a group
    by itself: TensorBoard sorts groups by name and unfolds the first two, which are then those of
    the two losses.
    """
    if '/' in name or name == 'loss':
        return name
    if name in SPEED:
        return f'speed/{name}'
    return f'train/optimizer/{name}' if name in OPTIMIZER else f'train/{name}'


def run_name(workdir: str | os.PathLike) -> str:
    """Returns the name of a run, that of its work directory."""
    return os.path.basename(os.path.abspath(os.fspath(workdir)))


def kept_id(workdir: str | os.PathLike, service: str, make: Callable[[], str] | None = None) -> str:
    """Returns the run's identifier at a service, kept in `<workdir>/<service>/run_id`.

    A run that is resumed thus goes on at the service too.

    Args:
      workdir: of the run.
      service: name of the folder.
      make: makes the identifier at the first start; None makes a random one.
    """
    path = epath.Path(workdir) / service / 'run_id'
    if path.exists():
        return path.read_text().strip()
    identifier = make() if make else uuid.uuid4().hex[:8]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(identifier + '\n')
    return identifier
