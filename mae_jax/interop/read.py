"""Reads a trained model wherever it comes from: a run, a file of ours, another library's, the Hub.

Which of them a path is:

1. `hf://owner/name[@revision]` is downloaded, and then read as the directory that it is;
2. a work directory, one of its checkpoints, or a file with our header: `trained.py` reads it;
3. a `.pkl` file is a detector of detectron2;
4. a file or directory of another library is converted in memory, as `mae-jax convert` would.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mae_jax.checkpoints.find import is_checkpoint
from mae_jax.config.saved import from_json, to_json
from mae_jax.errors import UserError
from mae_jax.files.buckets import service_errors
from mae_jax.files.paths import absolute
from mae_jax.files.tensors import read_safetensors_metadata
from mae_jax.interop import trained
from mae_jax.interop.detectron2 import is_detectron2, read_detectron2
from mae_jax.interop.foreign import read_foreign
from mae_jax.interop.hub import download, is_hub
from mae_jax.interop.trained import HEADER, Trained
from mae_jax.interop.translate import to_ours

OURS_IN_DIRECTORY = 'model.safetensors'
"""A file with our header may lie under this name in a directory, as on the Hub."""


def read_model(path: str | os.PathLike, say: Callable[[str], None] = lambda line: None) -> Trained:
    """Reads a trained model.

    Args:
      path: a work directory (its newest checkpoint), one of its checkpoints
        (`<workdir>/checkpoints/<step>`), a file that `mae-jax convert` wrote, a file or directory
        of another library (see `mae-jax convert --help`), or 'hf://owner/name[@revision]'.
      say: called with lines about what was assumed or left out of another library's model.

    Raises:
      UserError: there is no such model, it is damaged, or it is not one that we have.
    """
    with service_errors(path):
        local = locate_model(path)
        if is_ours(local):
            return trained.read_trained(local)
        if is_detectron2(local):
            return read_detectron2(local, say)
        foreign = read_foreign(local)
    try:
        return to_ours(foreign, {}, say)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def read_config(path: str | os.PathLike) -> ConfigDict:
    """Reads the config of a trained model; `path` as for `read_model`.

    That of another library follows from its tensors, and is kept in memory until they change.
    """
    with service_errors(path):
        local = locate_model(path)
        if is_ours(local):
            return trained.read_config(local)
        files = sorted(local.iterdir()) if local.is_dir() else [local]
        stamp = tuple((file.name, file.stat().length, file.stat().mtime) for file in files)
    return from_json(_config_text(os.fspath(local), stamp))


@functools.lru_cache(maxsize=8)
def _config_text(path: str, stamp: Any) -> str:
    return to_json(read_model(path).config)


def locate_model(path: str | os.PathLike) -> epath.Path:
    """Returns the local path of a model, downloaded from the Hub if it is there."""
    local = absolute(download(os.fspath(path)) if is_hub(path) else path)
    file = local / OURS_IN_DIRECTORY
    if local.is_dir() and file.exists() and HEADER in read_safetensors_metadata(file):
        return file
    return local


def is_ours(path: epath.Path) -> bool:
    """Returns whether `trained.py` reads a local path; a path where nothing is has its message."""
    if path.is_dir():
        return is_checkpoint(path) or (path / 'checkpoints').exists()
    if not path.exists():
        return True
    return path.suffix.lower() == '.safetensors' and HEADER in read_safetensors_metadata(path)
