"""Runs a config: `python main.py --config=configs/quickstart.py [--config.field=value]`.

The same command again resumes the run. Exit status: 0 finished; 1 a mistake that the message says
how to mend; 3 the loss was not finite; 75 asked to stop (SIGTERM, Ctrl-C) and saved: run it again;
76 a machine failed (another process is gone, or a step hung): run it again.
"""

import os
import sys
import traceback
from collections.abc import Callable

from absl import app, flags
from ml_collections import config_flags

from mae_jax.errors import UserError
from mae_jax.runtime.large_pages import start_with_large_pages
from mae_jax.runtime.xla_flags import set_xla_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The recipe, e.g. configs/quickstart.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run lives; default: runs/<config name>.')
_VERBOSE = flags.DEFINE_bool('verbose', False, 'Show the traceback of an error.')


def main(argv: list[str]) -> None:
    """Prepares the process, then runs the config."""
    if argv[1:]:
        raise UserError(f'{argv[1]!r} is not a flag: options look like --config.batch_size=64.')
    config = _CONFIG.value
    if config is None:
        raise UserError('no config: start with --config=configs/quickstart.py.')
    set_xla_flags(config.deterministic)  # before anything touches a device
    from mae_jax.experiment.run import run
    from mae_jax.runtime.compilation_cache import keep_compiled
    from mae_jax.runtime.library_noise import silence_libraries
    from mae_jax.runtime.processes import ending_together, start_processes

    silence_libraries()
    start_processes(saves='mode' in config and config.mode == 'train')
    keep_compiled()
    with ending_together():
        run(config, _WORKDIR.value or default_workdir())


def default_workdir() -> str:
    """Returns runs/quickstart for configs/quickstart.py; a config's argument is appended."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join('runs', f'{name}_{argument}' if argument else name)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line.

    Raises:
      UserError: a flag, a config file, a field or a value does not work.
    """
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # how ml_collections reports an unknown field
        detail = error.args[0]
        while isinstance(detail, Exception):  # an error wrapped in an error
            detail = detail.args[0]
        detail = '. '.join(detail.split('\n')).replace('"', "'")
        raise UserError(
            f'no such config field: {detail} (configs/default.py lists them)'
        ) from error
    except OSError as error:
        raise UserError('--config names no file: configs/ has those there are.') from error
    except (flags.Error, TypeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        if any(line.startswith('Traceback') for line in lines):  # raised by the config file
            message = lines[-1].removeprefix('ValueError: ')
            raise UserError(f'{message} (--verbose shows where)') from error
        raise UserError(f'{error} (--help lists the flags)') from error


def exit_on_user_error(function: Callable) -> Callable:
    """Turns a mistake of the user's into one sentence and an exit status, without a traceback."""

    def wrapped(argv: list[str]):
        try:
            return function(argv)
        except UserError as error:
            if '--verbose' in sys.argv:
                traceback.print_exc()
            print(f'error: {error}' if error.exit_status == 1 else error, file=sys.stderr)
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(error.exit_status)  # a thread that hangs in a read would hold the exit up

    return wrapped


if __name__ == '__main__':
    start_with_large_pages()
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))
