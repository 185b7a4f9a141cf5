"""Resolves paths, local or in the cloud, and shows them."""

import os
import sys

from etils import epath

from mae_jax.errors import did_you_mean
from mae_jax.files.buckets import as_path, is_remote


def expand_home(path: str | os.PathLike) -> str:
    """Replaces `~` at the start of a path: where a path enters the package, and only there."""
    return os.path.expanduser(os.fspath(path))


def absolute(directory: str | os.PathLike) -> epath.Path:
    """Returns an absolute path, which Orbax needs: resolves `~`, leaves `gs://` unchanged.

    Raises:
      UserError: as `as_path`.
    """
    if is_remote(directory):
        return as_path(directory)
    return epath.Path(os.path.abspath(expand_home(directory)))


def similar_path(path: str | os.PathLike) -> str:
    """Returns ": did you mean 'x'?" for a local path that does not exist, or ''.

    The first part of the path that is missing is compared to what is beside it.
    """
    path = expand_home(path)
    missing, rest = path.rstrip(os.sep), []
    while missing and not os.path.lexists(missing):
        parent, name = os.path.split(missing)
        if os.path.isdir(parent or '.'):
            names = os.listdir(parent or '.')
            paths = {each: os.path.join(parent, each, *rest) for each in names}
            return did_you_mean(name, paths)
        missing, rest = parent, [name, *rest]
    return ''


def print_text(text: str) -> None:
    """Prints a line at once, whatever the bytes of the file names in it are."""
    encoding = sys.stdout.encoding or 'utf-8'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
