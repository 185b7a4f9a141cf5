"""Runs a suite: rows of an ablation beside the paper's, or probes after each block of an encoder.

    mae-jax ablate --suite=ablation_suite:small --out=runs/ablations \\
        --config.dataset.path=/path/to/images
    mae-jax ablate --suite=ablation_suite:small --out=runs/ablations \\
        --config.dataset.path=/path/to/images --rows target_pixel target_pca --seeds 1 2
    mae-jax ablate --suite=probe_blocks --out=runs/probe_blocks --config.init_from=runs/folder

Writes <out>/table.md, plot.png (with matplotlib) and results.json; every run has a work directory,
<out>/<run>/seed<k>/{pretrain,linprobe,finetune} or .../probe, with its output in log.txt. The same
command continues where it was stopped. A stage that fails is reported, and the others go on.

Exit status: 0 all done; 1 a stage failed, or a mistake, with the remedy in the message; 75 or 130
stopped (SIGTERM, Ctrl-C) after the running stage has saved.
"""

import argparse
import sys
from pathlib import Path

from mae_jax.cli.arguments import Parser
from mae_jax.errors import EXIT_PREEMPTED, UserError, counted
from mae_jax.runtime.interrupts import cleaning_up


def add_arguments(parser: Parser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        '--suite',
        default='ablation_suite',
        help='a file with a get_suite, :its argument; unset: ablation_suite',
    )
    parser.add_argument('--out', required=True, type=_folder, help='directory of runs and table')
    parser.add_argument('--rows', nargs='+', default=(), help="unset: the suite's")
    parser.add_argument('--seeds', nargs='+', default=(), type=_seed, help="unset: the suite's")
    parser.add_overrides(
        'a field of all runs, or of a stage or row alone: --config.finetune.num_epochs=5'
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs what is not done yet of a suite.

    Raises:
      UserError: a mistake in the arguments, or stages failed.
    """
    from mae_jax.ablation.run import run_suite
    from mae_jax.ablation.suite import load_suite

    suite = load_suite(arguments.suite, arguments.overrides)
    message = '\nstopped: run the same command to go on.'
    try:
        with cleaning_up():
            failed = run_suite(suite, arguments.out, arguments.rows, arguments.seeds)
    except KeyboardInterrupt:
        print(message)
        raise
    except SystemExit:  # SIGTERM
        print(message)
        sys.exit(EXIT_PREEMPTED)
    except OSError as error:
        raise UserError(
            f'{error.filename} cannot be written ({error.strerror}): make room or make it '
            'writable, and run the same command to go on.'
        ) from error
    if failed:
        raise UserError(
            f'{counted(failed, "stage")} failed, listed in {arguments.out / "table.md"}: see their '
            'logs for the cause, and run the same command to try them again.'
        )


def _folder(text: str) -> Path:
    """Converts the text of a directory, which must be on a disk: logs are written line by line."""
    if '://' in text:
        raise argparse.ArgumentTypeError(f'{text} is not on a disk: give a local directory')
    return Path(text)


def _seed(text: str) -> int:
    """Converts the text of one seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a seed: give numbers from 0 on')
    return int(text)
