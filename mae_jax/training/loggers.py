"""Where metrics go besides the console and metrics.jsonl: loggers, by name."""

import os
from typing import Any, Protocol

import numpy as np

from mae_jax.registry import Registry


class Logger(Protocol):
    """Receives the metrics of a run, in one process. Its methods raise OSError where they fail."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs scalars under a step; steps never decrease."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Ends the log; nothing is logged afterwards."""


LOGGERS = Registry(
    'metric logger', 'loggers', {'tensorboard': 'mae_jax.training.tensorboard:Board'}
)
"""Name -> function (workdir, start_step, config) -> `Logger`.

A run that is resumed opens its loggers again with the step it goes on from: whatever was logged for
later steps is logged anew.
"""


def open_logger(name: str, workdir: str | os.PathLike, start_step: int, config: Any) -> Logger:
    """Opens the logger of this name, or of 'module:function', for a run.

    Raises:
      UserError: there is no such logger.
      OSError: it cannot write.
    """
    return LOGGERS.get(name)(workdir, start_step, config)
