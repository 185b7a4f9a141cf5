"""What a run can say to its user, and the exit status that goes with it."""

import os
import re

EXIT_USER_ERROR = 1
"""A mistake that the user can mend: the message says how."""

EXIT_DIVERGED = 3
"""The loss was not finite; the last good checkpoint is kept."""

EXIT_PREEMPTED = 75
"""The run was told to stop, saved, and goes on when the same command is run again (EX_TEMPFAIL)."""

EXIT_LOST = 76
"""A machine failed: another process is gone, or a step hung. The same command goes on."""


class UserError(Exception):
    """A sentence for the user: what was wrong, in which field or file, and what to do.

    `main.py` and `mae-jax` print it without a traceback and exit with `exit_status`.
    """

    exit_status = EXIT_USER_ERROR


class Diverged(UserError):
    """The loss was not finite. Work up to the last checkpoint is kept."""

    exit_status = EXIT_DIVERGED


class Preempted(UserError):
    """The run was asked to stop and has saved its state."""

    exit_status = EXIT_PREEMPTED


class Lost(UserError):
    """Another process of the run is gone, or hangs. Work up to the last checkpoint is kept."""

    exit_status = EXIT_LOST


def brief(error: Exception) -> str:
    """The system's own words where there are some (TensorStore ends its message with a code)."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code or isinstance(error, OSError) and error.errno:
        return os.strerror(int(code[1]) if code else error.errno)
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
