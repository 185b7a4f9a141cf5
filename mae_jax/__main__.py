"""`mae-jax <command>`, also `python -m mae_jax <command>`.

Exit status: 0 done; 1 a mistake that the message says how to mend.
"""

import argparse
import importlib
import signal
import sys
import traceback

from mae_jax.errors import UserError
from mae_jax.runtime.library_noise import silence_libraries

COMMANDS = {
    'ablate': "rows of an ablation, trained and put beside the paper's figures",
    'convert': 'weights of another library into ours, and ours into theirs',
    'plan': 'what a run needs of a machine that is not here: memory, operations, days',
    'prepare': 'a data set as shards of smaller images, which are read and decoded in less time',
    'visualize': 'what a model reconstructs of images, attends to and tells apart, as a picture',
}


def main() -> None:
    """Runs the command that the arguments name."""
    arguments = parse_arguments(sys.argv[1:])
    silence_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no half-written file behind
    try:
        _module(arguments.command).run(arguments)
    except UserError as error:
        if arguments.verbose:
            traceback.print_exc()
        print(f'error: {error}', file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell says it


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The arguments of a command; a mistake in them ends the process with status 1."""
    parser = _Parser('mae-jax', description='Masked Autoencoders in JAX.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='command')
    for name, told in COMMANDS.items():
        # Only what is asked for is imported: JAX takes seconds.
        wanted = name in argv[:1]
        text = _module(name).__doc__ if wanted else told
        command = commands.add_parser(
            name,
            help=told,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            '--verbose', action='store_true', help='show the traceback of an error'
        )
        if wanted:
            _module(name).add_arguments(command)
    return parser.parse_args(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.print_usage(sys.stderr)
        self.exit(1, f'error: {message} (--help lists the options)\n')


def _module(command: str):
    return importlib.import_module(f'mae_jax.cli.{command}')


if __name__ == '__main__':
    main()
