"""Keeps what Orbax and TensorStore say by the way from a run's console; importing it is enough."""

import logging
import os
import sys
import warnings
from typing import Any

# Orbax logs through absl's one logger, and a failed write leaves coroutines of its behind, and
# threads of TensorStore's that still want to tell them. Whatever fails there also raises, and is
# told from here.
warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
logging.getLogger('absl').addFilter(
    lambda record: f'{os.sep}orbax{os.sep}checkpoint{os.sep}' not in record.pathname
)

_unraisable = sys.unraisablehook


def _tell_but_late_futures(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
        _unraisable(unraisable)


sys.unraisablehook = _tell_but_late_futures
