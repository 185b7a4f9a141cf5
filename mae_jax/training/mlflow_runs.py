"""Logs to MLflow (extra: mlflow)."""

import os
import time
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mae_jax.training.loggers import grouped, kept_id, run_name

MAX_PARAMS = 100
"""Parameters that MLflow takes in one call."""


class MlflowRun:
    """A run of MLflow, which goes on when the run is resumed: a `Logger`.

    MLflow's own variables decide where it goes: MLFLOW_TRACKING_URI, by default `mlflow.db` in the
    current directory, and MLFLOW_EXPERIMENT_NAME, by default mae_jax.

    Args:
      workdir: of the run.
      start_step: not used: MLflow keeps every value with its step.
      config: of the run; its fields are the parameters.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int, config: Any = None):
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = client = mlflow.MlflowClient()
        fields = {} if config is None else flatten_dict(config.to_dict(), sep='.')
        params = [Param(name, str(value)) for name, value in fields.items()]

        def create() -> str:
            name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'mae_jax')
            experiment = client.get_experiment_by_name(name)
            experiment = experiment.experiment_id if experiment else client.create_experiment(name)
            run = client.create_run(experiment, run_name=run_name(workdir)).info.run_id
            for start in range(0, len(params), MAX_PARAMS):
                client.log_batch(run, params=params[start : start + MAX_PARAMS])
            return run

        self._run = kept_id(workdir, 'mlflow', create)
        client.update_run(self._run, status='RUNNING')
        self._pending = []

    def scalars(self, step: int, values: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(grouped(n), value, now, step) for n, value in values.items()]
        # In MLflow's own thread: a server that does not answer is asked again for minutes.
        self._pending.append(self._client.log_batch(self._run, metrics, synchronous=False))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._client.log_image(self._run, pixels, key=name, step=step, synchronous=False)

    def close(self) -> None:
        for operations in self._pending:
            operations.wait()
        self._client.set_terminated(self._run)
