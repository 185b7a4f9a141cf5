"""Resolves paths, local or in the cloud."""

import os

from etils import epath


def absolute(directory: str | os.PathLike) -> epath.Path:
    """Returns an absolute path, which Orbax needs: resolves `~`, leaves `gs://` unchanged."""
    directory = epath.Path(directory).expanduser()
    return directory if '://' in os.fspath(directory) else epath.Path(os.path.abspath(directory))
