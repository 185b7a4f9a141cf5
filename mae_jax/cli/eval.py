"""Evaluates the last checkpoint of a run on its held-out images; its work directory is enough.

    mae-jax eval runs/finetune
    mae-jax eval runs/finetune --config.dataset.path=/other/place --config.per_class=True

The config is that of the work directory. Fields that may change within a run can be given: where
the images are, their evaluation split, mesh.fsdp, ...
"""

import argparse

from mae_jax.cli.arguments import Parser
from mae_jax.cli.train import run_config


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument('workdir', metavar='RUN', help='the work directory of a run')
    parser.add_overrides('a field that may change within a run')


def run(arguments: argparse.Namespace) -> None:
    """Prints the metrics of the run's task."""
    from mae_jax.experiment.saved import saved_config

    config = saved_config(arguments.workdir, arguments.overrides)
    config.mode = 'eval'
    run_config(config, arguments.workdir)
