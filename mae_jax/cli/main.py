"""Runs `mae-jax <command>`: parses the arguments and calls the module of the command.

Exit status: 0 done; 1 a mistake of the user, with the remedy in the message; 130 Ctrl-C; 143
SIGTERM. `train.py` lists those of a run.
"""

import argparse
import importlib
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from types import ModuleType

import mae_jax
from mae_jax.cli.arguments import Parser
from mae_jax.errors import UserError, did_you_mean

COMMANDS = {
    'ablate': "rows of an ablation beside the paper's figures; probes after each block",
    'convert': 'weights of another library into ours, and ours into theirs',
    'embed': 'features of all images below a folder, by a trained encoder',
    'eval': 'a run again, from its work directory alone',
    'export': 'a model as StableHLO or ONNX, which run without this package',
    'fields': 'every field of a config, with its default and what it means',
    'plan': 'what a run needs of a machine that is not at hand: memory, operations, days',
    'prepare': 'a data set as shards of smaller images, which are read and decoded in less time',
    'push': 'a finished run to the Hugging Face Hub, with its model card',
    'robustness': 'a classifier on ImageNet-A, -R, -Sketch, -C, or on corrupted images of your own',
    'train': 'pretraining, fine-tuning, probes and evaluation: whatever a config describes',
    'visualize': 'what a model reconstructs of images, attends to and distinguishes, as a picture',
}
"""Name of a command, which is that of its module -> its line in `mae-jax --help`."""

ON_CPU = ('convert', 'export', 'plan', 'push', 'visualize')
"""Commands that leave an accelerator to the run that may be using it, unless JAX_PLATFORMS names
one ('': whatever there is)."""


def main(argv: Sequence[str], program: str = 'mae-jax') -> int:
    """Runs the command that the arguments name, and returns its exit status."""
    try:
        arguments = parse_arguments(argv, program)
        from mae_jax.files.buckets import service_errors
        from mae_jax.runtime.library_noise import silence_libraries
        from mae_jax.runtime.xla_flags import leave_out_absent_tpu

        silence_libraries()
        if arguments.command in ON_CPU:
            os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # before JAX is imported
        leave_out_absent_tpu()
        with service_errors():
            _module(arguments.command).run(arguments)
    except UserError as error:
        if '--verbose' in argv:
            traceback.print_exc()
        print(f'error: {error}' if error.exit_status == 1 else error, file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        return 130  # a shell's status for SIGINT
    return 0


def parse_arguments(argv: Sequence[str], program: str = 'mae-jax') -> argparse.Namespace:
    """Parses a command and its arguments; only the module of that command is imported.

    Args:
      program: for the help of the command; 'main.py' stands for `mae-jax train`.

    Raises:
      UserError: there is no such command, or an argument of it does not work.
    """
    command = argv[0] if argv else '--help'
    if command in ('-h', '--help'):
        print(_help())
        raise SystemExit
    if command == '--version':
        print(f'mae_jax {mae_jax.__version__}')
        raise SystemExit
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS.keys()) or f': choose {", ".join(COMMANDS)}.'
        raise UserError(f'{command!r} is not a command of mae-jax{hint}')
    module = _module(command)
    prog = program if program != 'mae-jax' else f'mae-jax {command}'
    parser = Parser(prog, module.__doc__)
    parser.add_argument('--verbose', action='store_true', help='show the traceback of an error')
    module.add_arguments(parser)
    arguments = parser.parse(argv[1:])
    arguments.command = command
    return arguments


def _help() -> str:
    width = max(map(len, COMMANDS)) + 4
    lines = [
        textwrap.fill(f'  {name:<{width - 2}}{summary}', 80, subsequent_indent=' ' * width)
        for name, summary in COMMANDS.items()
    ]
    return '\n'.join(
        (
            'usage: mae-jax <command> [arguments]',
            '',
            'Masked Autoencoders in JAX.',
            '',
            *lines,
            '',
            'mae-jax <command> --help lists the arguments; mae-jax --version the version.',
        )
    )


def _module(command: str) -> ModuleType:
    return importlib.import_module(f'mae_jax.cli.{command}')
