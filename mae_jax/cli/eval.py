"""Evaluates the last checkpoint of a run on its held-out images; its work directory is enough.

    mae-jax eval runs/finetune
    mae-jax eval runs/finetune --set dataset.path=/other/place per_class=True

The config is that of the work directory. Fields that may change within a run can be given: where
the images are, their evaluation split, mesh.fsdp, ...
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument('workdir', metavar='RUN', help='the work directory of a run')
    parser.add_argument(
        '--set',
        nargs='+',
        default=[],
        action='extend',
        metavar='FIELD=VALUE',
        help='a config field',
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the metrics of the run's task."""
    from mae_jax.experiment.saved import saved_config
    from mae_jax.runtime.xla_flags import set_xla_flags

    config = saved_config(arguments.workdir, arguments.set)
    config.mode = 'eval'
    set_xla_flags(config.get('deterministic', False))  # before anything touches a device
    from mae_jax.experiment.run import run
    from mae_jax.runtime.compilation_cache import keep_compiled
    from mae_jax.runtime.processes import ending_together, start_processes

    start_processes(saves=False)
    keep_compiled()
    with ending_together():
        run(config, arguments.workdir)
