"""Named tensors in a file: safetensors, npz, PyTorch's `.pth`. Nothing in a file is ever run.

Each reader gives numpy arrays by name and what else the file states; a file that is damaged, or of
another kind than its name says, ends in a `UserError`.
"""

import argparse
import contextlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mae_jax.errors import UserError
from mae_jax.find_checkpoint import absolute

Tensors = dict[str, np.ndarray]


def read_safetensors(path: str | os.PathLike) -> tuple[Tensors, dict[str, str]]:
    """(tensors, metadata) of a safetensors file."""
    with _open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What its header says beside the tensors; these are not read."""
    with _open_safetensors(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _open_safetensors(path: str | os.PathLike) -> Iterator[safe_open]:
    with local(path) as file:
        try:
            with safe_open(file, 'numpy') as opened:
                yield opened
        except (SafetensorError, OSError, TypeError) as error:
            raise damaged(path, 'safetensors', error) from error


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes one file, whole or not at all."""
    # The library writes an array's memory as it lies: a transposed view would come out wrong.
    dense = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replacing(path) as fresh:
        Path(fresh).touch()
        mode = os.stat(fresh).st_mode
        save_file(dense, fresh, metadata=metadata)
        os.chmod(fresh, mode)  # the library's own are for nobody else to read


def read_npz(path: str | os.PathLike) -> Tensors:
    """Tensors of a NumPy archive; one that holds pickled objects is refused."""
    with local(path) as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if 'allow_pickle' in str(error):
                error = ValueError('it holds pickled objects, which are never read')
            raise damaged(path, 'npz', error) from error


def write_npz(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one file, whole or not at all."""
    with replacing(path) as fresh, open(fresh, 'wb') as file:
        np.savez(file, **tensors)


def read_pth(path: str | os.PathLike) -> Any:
    """What a PyTorch checkpoint holds: nested dicts, with PyTorch's tensors on the CPU.

    Read with `weights_only=True`, so that nothing in it is run. `argparse.Namespace`, which
    official training checkpoints hold, is the only class allowed besides PyTorch's own.
    """
    torch = import_torch(f'{path} is a PyTorch file')
    with local(path) as file, torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:  # a damaged file meets every kind of exception
            raise damaged(path, 'PyTorch', _pickle_problem(error)) from error


def write_pth(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes {'model': tensors}, as the official checkpoints are."""
    torch = import_torch(f'{path} is to be a PyTorch file')
    state = {n: torch.from_numpy(np.ascontiguousarray(x)) for n, x in tensors.items()}
    with replacing(path) as fresh:
        torch.save({'model': state}, fresh)


def import_torch(reason: str) -> Any:
    """PyTorch, or a UserError that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{reason}, which needs PyTorch: pip install 'mae_jax[torch]'.") from error
    return torch


def _pickle_problem(error: Exception) -> str:
    """In our words: PyTorch's own recommend to try again without the protection."""
    text = str(error)
    if 'GLOBAL ' in text:  # "Unsupported global: GLOBAL os.system was not an allowed global ..."
        name = text.split('GLOBAL ', 1)[1].split()[0]
        return f'it would run {name}, which is never done; have its author save the tensors alone'
    return 'it is cut off or damaged, or never was one; get it again'


def damaged(path: str | os.PathLike, kind: str, reason: Any) -> UserError:
    told = f'{reason}'.strip().rstrip('.') or type(reason).__name__
    return UserError(f'{path} cannot be read as a {kind} file: {told}.')


@contextlib.contextmanager
def local(path: str | os.PathLike) -> Iterator[str]:
    """A path on this machine to a file that may lie in the cloud."""
    path = absolute(path)
    if not path.exists():
        raise UserError(f'{path} does not exist.')
    if '://' not in os.fspath(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield os.fspath(path.copy(epath.Path(folder) / path.name))


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """A path to write to, which takes the place of `path` when all is written.

    Raises:
      UserError: it cannot be written there.
    """
    path = absolute(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remote = '://' in os.fspath(path)
        with tempfile.TemporaryDirectory(
            dir=None if remote else path.parent, prefix='.writing_'
        ) as folder:
            fresh = Path(folder) / path.name
            yield os.fspath(fresh)
            if path.is_dir():
                path.rmtree()
            if remote:
                _upload(epath.Path(fresh), path)
            else:
                fresh.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(
            f'{path} cannot be written ({reason}): make room, or choose another place.'
        ) from error


def _upload(source: epath.Path, destination: epath.Path) -> None:
    if not source.is_dir():
        source.copy(destination, overwrite=True)
        return
    destination.mkdir(parents=True, exist_ok=True)
    for child in source.iterdir():
        _upload(child, destination / child.name)
