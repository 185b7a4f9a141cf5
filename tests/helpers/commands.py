"""Tiny runs of the real command, for tests that start it."""

import os
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart
from helpers.environment import xla_flags

ROOT = Path(__file__).parents[2]

TINY = (
    '--config=configs/quickstart.py',
    '--config.num_steps=8',
    '--config.batch_size=16',
    '--config.model.width=16',
    '--config.model.depth=1',
    '--config.model.decoder_width=16',
    '--config.log_every_steps=2',
    '--config.eval_every_steps=4',
    '--config.eval_examples=32',
    '--config.image_every_steps=4',
    '--config.checkpoint_every_steps=2',
    '--config.probe_at_end=False',
)
"""Arguments of a run of eight tiny steps on real digits, with everything a run has."""


def make_tiny_config() -> ConfigDict:
    """The config that `TINY` stands for."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(dict(parse(argument) for argument in TINY[1:]))
    return config


def parse(argument: str) -> tuple[str, int | bool]:
    """'--config.model.width=16' -> ('model.width', 16)."""
    key, _, value = argument.removeprefix('--config.').partition('=')
    return key, value == 'True' if value in ('True', 'False') else int(value)


def start(*arguments: str, script: str = 'main.py', **options) -> subprocess.Popen:
    """The real command, on one CPU device, its output as text."""
    environment = os.environ | {'XLA_FLAGS': xla_flags(), 'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
