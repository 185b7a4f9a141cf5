"""Errors with a message for the user, and the exit statuses of a command."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping

EXIT_USER_ERROR = 1
"""A mistake of the user's; the message explains how to correct it."""

EXIT_DIVERGED = 3
"""The loss was not finite; the last checkpoint before is kept."""

EXIT_PREEMPTED = 75
"""The run was asked to stop and has saved; the same command continues it (EX_TEMPFAIL)."""

EXIT_LOST = 76
"""A machine failed: another process ended, or a step hung. The same command continues the run."""


class UserError(Exception):
    """An error that the user can correct: which field or file is wrong, and what to do about it.

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
    """Another process of the run ended, or hangs. Work up to the last checkpoint is kept."""

    exit_status = EXIT_LOST


def brief(error: Exception) -> str:
    """Returns an error in one line: the system's message for its error code, if it has one.

    TensorStore puts the code into the text of its message.
    """
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code or isinstance(error, OSError) and error.errno:
        return os.strerror(int(code[1]) if code else error.errno)
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun in the right number: '1 image', '2,000 images', 'no images'."""
    plural = '' if count == 1 else 'es' if noun.endswith(('s', 'x')) else 's'
    return f'{f"{count:,}" if count else "no"} {noun}{plural}'


def did_you_mean(name: str, known: Iterable[str] | Mapping[str, str]) -> str:
    """Returns ": did you mean 'x'?" with the name that is most like this one, or ''.

    Args:
      name: what the user wrote.
      known: the names that exist; of a mapping, the value of the nearest key is shown.
    """
    shown = known if isinstance(known, Mapping) else {each: each for each in known}
    lower = {each.lower(): each for each in shown}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f': did you mean {shown[lower[near[0]]]!r}?' if near else ''
