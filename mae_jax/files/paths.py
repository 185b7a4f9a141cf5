"""Resolves paths, local or in the cloud, and shows them."""

import os
import sys

from etils import epath


def absolute(directory: str | os.PathLike) -> epath.Path:
    """Returns an absolute path, which Orbax needs: resolves `~`, leaves `gs://` unchanged."""
    directory = epath.Path(directory).expanduser()
    return directory if '://' in os.fspath(directory) else epath.Path(os.path.abspath(directory))


def print_text(text: str) -> None:
    """Prints a line at once, whatever the bytes of the file names in it are."""
    encoding = sys.stdout.encoding or 'utf-8'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
