"""Keeps messages of Orbax, TensorStore, libtpu, JAX's start and cloud storage off the console."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging


def silence_libraries() -> None:
    """Filters what libraries log about their own work; for the command line, never on import.

    Orbax logs through absl's only logger, and a failed write leaves unawaited coroutines and
    threads of TensorStore behind, which report late. Every such failure also raises an error, and
    that is what the user reads.
    """
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
    absl_logging.get_absl_logger().addFilter(_is_not_from_orbax)  # it names the caller's file
    for name in ('xla_bridge', 'distributed'):  # absent backends, starting services
        logging.getLogger(f'jax._src.{name}').setLevel(logging.WARNING)
    for name in ('gcsfs', 'google'):  # every failed try, with its traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings('ignore', module=rf'{name}\b')
    before = sys.unraisablehook

    def report_unless_late(unraisable: Any) -> None:
        if str(unraisable.exc_value) != 'Event loop is closed':
            before(unraisable)

    sys.unraisablehook = report_unless_late


@contextlib.contextmanager
def discarded_stderr() -> Iterator[None]:
    """Discards what the process writes to standard error meanwhile, native code included.

    libtpu logs dozens of lines wherever there is no TPU, and takes no flag against it.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, 'wb') as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}checkpoint{os.sep}' not in record.pathname
