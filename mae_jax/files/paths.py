"""Which checkpoints there are, and which of them are as they were written."""

import os

from etils import epath


def absolute(directory: str | os.PathLike) -> epath.Path:
    """As Orbax wants it: `~` and relative paths resolved, `gs://` as it is."""
    directory = epath.Path(directory).expanduser()
    return directory if '://' in os.fspath(directory) else epath.Path(os.path.abspath(directory))
