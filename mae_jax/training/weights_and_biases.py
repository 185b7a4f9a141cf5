"""Logs to Weights & Biases (extra: wandb)."""

import os
from typing import Any

import numpy as np

from mae_jax.training.loggers import grouped, kept_id, run_name


class WeightsAndBiases:
    """A run of wandb, which goes on when the run is resumed: a `Logger`.

    wandb's own variables decide where it goes: WANDB_MODE=offline keeps it in `<workdir>/wandb`,
    for `wandb sync`; WANDB_PROJECT is the project, by default mae_jax.

    Args:
      workdir: of the run, and of wandb's files.
      start_step: not used: steps are logged as a metric, which may go back.
      config: of the run.

    Raises:
      RuntimeError: wandb is to go online and has no API key. It is never asked for.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int, config: Any = None):
        import wandb

        if wandb.setup().settings.mode == 'online' and not wandb.login(prompt=False, verify=False):
            raise RuntimeError('wandb has no API key: run `wandb login`, or set WANDB_MODE=offline')
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get('WANDB_PROJECT', 'mae_jax'),
            name=run_name(workdir),
            id=kept_id(workdir, 'wandb'),
            resume='allow',
            reinit='create_new',
            dir=os.fspath(workdir),
            config=None if config is None else config.to_dict(),
            settings=wandb.Settings(console='off', silent=True),
        )
        self._run.define_metric('*', step_metric='step')

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({'step': step, **{grouped(n): value for n, value in values.items()}})

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._run.log({'step': step, f'eval/{name}': self._image(pixels)})

    def close(self) -> None:
        self._run.finish()
