"""Runs a config: `python main.py --config=configs/quickstart.py [--config.field=value]`.

The same command again resumes the run. Exit status: 0 finished; 1 a mistake that the message says
how to mend; 3 the loss was not finite; 75 told to stop (SIGTERM, Ctrl-C) and saved: run it again;
76 a machine failed (another process is gone, or a step hung): run it again.
"""

import logging
import os
import sys
import traceback

from absl import app, flags
from ml_collections import config_flags

from mae_jax.errors import UserError
from mae_jax.runtime.large_pages import start_with_large_pages
from mae_jax.runtime.xla_flags import set_xla_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The recipe, e.g. configs/quickstart.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run lives; default: runs/<config name>.')
_VERBOSE = flags.DEFINE_bool('verbose', False, 'Show the traceback of an error.')


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise UserError(f'{argv[1]!r} is not a flag: options look like --config.batch_size=64.')
    if _CONFIG.value is None:
        raise UserError('no config: start with --config=configs/quickstart.py.')
    set_xla_flags(_CONFIG.value.deterministic)  # before anything touches a device
    from mae_jax.experiment.run import run
    from mae_jax.runtime.compilation_cache import keep_compiled
    from mae_jax.runtime.processes import ending_together, start_processes

    for chatty in ('xla_bridge', 'distributed'):  # backends not found, services begun
        logging.getLogger(f'jax._src.{chatty}').setLevel(logging.WARNING)
    start_processes(saves=_CONFIG.value.get('mode') == 'train')  # k-NN has no mode
    keep_compiled()
    with ending_together():
        run(_CONFIG.value, _WORKDIR.value or default_workdir())


def default_workdir() -> str:
    """runs/quickstart for configs/quickstart.py; a config's argument is added to the name."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join('runs', f'{name}_{argument}' if argument else name)


def parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # how ml_collections reports an unknown field
        detail = error.args[0]
        while isinstance(detail, Exception):  # wrapped, an error in an error
            detail = detail.args[0]
        detail = '. '.join(detail.split('\n')).replace('"', "'")
        raise UserError(
            f'no such config field: {detail} (configs/default.py lists them)'
        ) from error
    except OSError as error:
        raise UserError('--config names no file: see configs/ for those there are.') from error
    except (flags.Error, TypeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        if any(line.startswith('Traceback') for line in lines):  # raised by the config file
            told = lines[-1].removeprefix('ValueError: ')
            raise UserError(f'{told} (--verbose shows where)') from error
        raise UserError(f'{error} (--help lists the flags)') from error


def told_to_user(function):
    """A mistake of the user's becomes one sentence and an exit status, not a traceback."""

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
    app.run(told_to_user(main), flags_parser=told_to_user(parse_flags))
