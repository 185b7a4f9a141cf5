"""Trains or evaluates what a config describes: pretraining, fine-tuning, probes, k-NN.

    mae-jax train quickstart
    mae-jax train folder --config.dataset.path=/path/to/images --workdir=runs/mine
    mae-jax train ablations:decoder_depth_1
    mae-jax train my/config.py --config.batch_size=64 --config.model.depth=6

In a checkout `python main.py --config=configs/quickstart.py` is the same. The same command again
resumes the run; `--workdir` alone does, too, with the config that is stored there, and evaluates it
with `--config.mode=eval` (or `mae-jax eval RUN`).

Exit status: 0 finished; 1 a mistake that the message explains how to correct; 3 the loss was not
finite; 75 asked to stop (SIGTERM, Ctrl-C) and saved: run it again; 76 a machine failed (another
process is gone, or a step hung): run it again; 130 Ctrl-C before the first step, or twice; 143
SIGTERM before the first step.
"""

import argparse
import os
from typing import TYPE_CHECKING

import mae_jax
from mae_jax.cli.arguments import Parser, config_of
from mae_jax.runtime.interrupts import current_interrupts

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONNECTION_LIMITS = ('connect_timeout_s', 'heartbeat_timeout_s')


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of the command."""
    parser.add_config()
    parser.add_argument('--workdir', help='where the run lives; unset: runs/<name of the config>')


def run(arguments: argparse.Namespace) -> None:
    """Runs a config; JAX is imported once the config is known to be valid."""
    if interrupts := current_interrupts():
        interrupts.farewell = 'stopped before the first step'
    workdir = arguments.workdir
    if workdir and not (arguments.name or arguments.config):
        from mae_jax.experiment.saved import saved_config

        return run_config(saved_config(workdir, arguments.overrides), workdir)
    from mae_jax.config.files import load_config

    name = config_of(arguments)
    config = load_config(name, arguments.overrides)
    run_config(config, workdir or default_workdir(name), name)


def run_config(config: 'ConfigDict', workdir: str, name: str = 'config.json') -> None:
    """Prepares the process for a config, and runs it; `name` is what the first line calls it."""
    from mae_jax.runtime.xla_flags import set_xla_flags

    if _is_first_process():
        print(f'mae_jax {mae_jax.__version__}: {name} in {workdir}', flush=True)
    set_xla_flags(config.get('deterministic', False))  # before anything touches a device
    from mae_jax.experiment.run import run
    from mae_jax.runtime.compilation_cache import keep_compiled
    from mae_jax.runtime.failures import ending_together
    from mae_jax.runtime.preemption import answer_before_service
    from mae_jax.runtime.processes import start_processes

    is_training = 'mode' in config and config.mode == 'train'
    limits = {name: config[name] for name in CONNECTION_LIMITS if name in config}
    start_processes(saves=is_training, **limits)
    answer_before_service()
    keep_compiled(workdir if is_training else None)  # compiled programs are code
    with ending_together():
        run(config, workdir)


def default_workdir(config: str) -> str:
    """Returns runs/quickstart for configs/quickstart.py; a config's argument is appended."""
    path, _, argument = config.partition(':')
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join('runs', f'{name}_{argument}' if argument else name)


def _is_first_process() -> bool:
    """Returns whether this may be the only or first process of a run; JAX knows it for sure."""
    numbers = ('JAX_PROCESS_ID', 'JOB_COMPLETION_INDEX', 'SLURM_PROCID')
    return all(os.environ.get(name, '0') == '0' for name in numbers)
