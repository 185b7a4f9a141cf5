"""Runs `mae-jax <command>`: parses the arguments and calls the module of the command.

Exit status: 0 done; 1 a mistake of the user, with the remedy in the message; 130 Ctrl-C; 143
SIGTERM.
"""

import argparse
import importlib
import signal
import sys
import traceback
from types import ModuleType

from mae_jax.errors import UserError
from mae_jax.runtime.library_noise import silence_libraries

COMMANDS = {
    'ablate': "rows of an ablation, trained and put beside the paper's figures",
    'convert': 'weights of another library into ours, and ours into theirs',
    'export': 'a model as StableHLO or ONNX, which run without this package',
    'plan': 'what a run needs of a machine that is not at hand: memory, operations, days',
    'prepare': 'a data set as shards of smaller images, which are read and decoded in less time',
    'push': 'a finished run to the Hugging Face Hub, with its model card',
    'visualize': 'what a model reconstructs of images, attends to and distinguishes, as a picture',
}
"""Name of a command, which is that of its module -> its line in `mae-jax --help`."""


def main() -> None:
    """Runs the command that the arguments name, and exits with its status."""
    arguments = parse_arguments(sys.argv[1:])
    silence_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs cleanup of half-written files
    try:
        _module(arguments.command).run(arguments)
    except UserError as error:
        if arguments.verbose:
            traceback.print_exc()
        print(f'error: {error}', file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)  # a shell's status for SIGINT


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the arguments of a command; a mistake in them ends the process with status 1."""
    parser = _Parser('mae-jax', description='Masked Autoencoders in JAX.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='command')
    for name, summary in COMMANDS.items():
        is_chosen = name in argv[:1]  # only the chosen command's module is imported
        command = commands.add_parser(
            name,
            help=summary,
            description=_module(name).__doc__ if is_chosen else summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            '--verbose', action='store_true', help='show the traceback of an error'
        )
        if is_chosen:
            _module(name).add_arguments(command)
    return parser.parse_args(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Prints the usage and one sentence, and exits with 1 instead of argparse's 2."""
        self.print_usage(sys.stderr)
        self.exit(1, f'error: {message} (--help lists the options)\n')


def _module(command: str) -> ModuleType:
    return importlib.import_module(f'mae_jax.cli.{command}')
