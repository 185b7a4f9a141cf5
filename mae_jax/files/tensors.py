"""Reads and writes named tensors: safetensors, .npz and PyTorch's .pth, without running any code.

Readers return numpy arrays by name, and the metadata of the file. A file that is damaged, or of
another kind than its suffix, raises a `UserError`.
"""

import argparse
import contextlib
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mae_jax.errors import UserError
from mae_jax.files.buckets import is_remote, make_directory, service_errors
from mae_jax.files.limits import check_expansion, read_npy, reason, regular_size
from mae_jax.files.paths import absolute, similar_path

Tensors = dict[str, np.ndarray]


def read_safetensors(path: str | os.PathLike) -> tuple[Tensors, dict[str, str]]:
    """Reads a safetensors file: (tensors, metadata)."""
    with _open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def read_safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Reads the metadata of a safetensors file, without its tensors."""
    with _open_safetensors(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _open_safetensors(path: str | os.PathLike) -> Iterator[Any]:
    with (
        local_copy(path) as local,
        _reading(path, 'safetensors'),
        safe_open(local, 'numpy') as file,
    ):
        yield file


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes a local safetensors file."""
    # The library writes the memory of an array in order: a transposed view would be stored wrong.
    dense = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    Path(path).touch()
    mode = os.stat(path).st_mode
    save_file(dense, path, metadata=metadata)
    os.chmod(path, mode)  # the library makes files that only their owner can read


def read_npz(path: str | os.PathLike) -> Tensors:
    """Reads the tensors of a NumPy archive; raises UserError if it holds pickled objects."""
    with local_copy(path) as file, _reading(path, 'npz'), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        check_expansion(sum(member.file_size for member in members), os.path.getsize(file))
        return {
            member.filename.removesuffix('.npy'): read_npy(archive.read(member))
            for member in members
        }


def write_npz(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a local .npz file."""
    with open(path, 'wb') as file:
        np.savez(file, **tensors)


def read_pth(path: str | os.PathLike) -> Any:
    """Reads a PyTorch checkpoint as nested dicts with numpy arrays for tensors.

    Reads with `weights_only=True`, which runs no code. `argparse.Namespace`, which the official
    training checkpoints contain, is the only class allowed besides PyTorch's own.
    """
    torch = import_torch(f'{path} is a PyTorch file')
    with local_copy(path) as file, torch.serialization.safe_globals([argparse.Namespace]):
        with _reading(path, 'PyTorch'):
            size = os.path.getsize(file)
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    check_expansion(sum(x.file_size for x in archive.infolist()), size)
        try:
            content = torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:  # damaged files raise exceptions of all kinds
            raise unreadable(path, 'PyTorch', _pickle_problem(error)) from error
    try:
        return _to_numpy(torch, path, content, size)
    except RecursionError as error:
        raise unreadable(path, 'PyTorch', 'it is nested too deeply') from error


def _to_numpy(torch: Any, path: str | os.PathLike, content: Any, size: int) -> Any:
    """Converts the tensors in nested dicts to numpy arrays; `size` is that of the file in bytes."""
    # Each dict is converted once: one that occurs in itself, or many times, would take for ever.
    converted, claimed = {}, 0

    def convert(node: Any, name: str = 'it') -> Any:
        nonlocal claimed
        if isinstance(node, Mapping):
            if id(node) not in converted:
                converted[id(node)] = {}
                converted[id(node)].update({str(k): convert(x, str(k)) for k, x in node.items()})
            return converted[id(node)]
        if not isinstance(node, torch.Tensor):
            return node
        claimed += node.numel() * node.element_size()  # an expanded view has more than is stored
        with _reading(path, 'PyTorch'):
            check_expansion(claimed, size)
        if node.dtype == torch.bfloat16:  # NumPy has none
            node = node.float()
        try:
            return node.detach().numpy()
        except (TypeError, RuntimeError) as error:
            problem = f'{name} is {node.layout} of {node.dtype}, which NumPy does not have'
            raise unreadable(path, 'PyTorch', problem) from error

    return convert(content)


def write_pth(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a local .pth file with {'model': tensors}, like the official checkpoints."""
    torch = import_torch(f'{Path(path).name} is to be a PyTorch file')
    state = {n: torch.from_numpy(np.array(x)) for n, x in tensors.items()}
    try:
        torch.save({'model': state}, path)
    except RuntimeError as error:  # how PyTorch reports a full disk
        raise OSError(str(error).splitlines()[0]) from error


def import_torch(reason: str) -> Any:
    """Imports PyTorch; without it, raises a UserError with `reason` and how to install it."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f'{reason}, which needs PyTorch: pip install torch.') from error
    return torch


def _pickle_problem(error: Exception) -> str:
    """Describes an error of PyTorch, whose own message recommends to turn the protection off."""
    text = str(error)
    if 'GLOBAL ' in text:  # "Unsupported global: GLOBAL os.system was not an allowed global ..."
        name = text.split('GLOBAL ', 1)[1].split()[0]
        return f'it would run {name}, which is never done; have its author save the tensors alone'
    return 'it is truncated, damaged or of another kind; get it again'


@contextlib.contextmanager
def _reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Raises the UserError of `unreadable` for any error in the block."""
    try:
        yield
    except Exception as error:  # damaged files raise exceptions of all kinds
        raise unreadable(path, kind, error) from error


def unreadable(path: str | os.PathLike, kind: str, problem: Any) -> UserError:
    """Makes the error of a file that is damaged, or of another kind than `kind`."""
    message = f'{problem}'.strip().rstrip('.') or type(problem).__name__
    return UserError(f'{path} cannot be read as a {kind} file: {message}.')


@contextlib.contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[str]:
    """Yields a local path to a file: of a file in the cloud, that of a temporary copy.

    Raises:
      UserError: there is no such file, or it is not a regular one.
    """
    path = absolute(path)
    with service_errors(path):
        if not path.exists():
            raise UserError(f'{path} does not exist{similar_path(path) or "."}')
    if not is_remote(path):
        try:
            regular_size(path)
        except OSError as error:
            raise UserError(f'{path} cannot be read: {reason(error)}.') from error
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        with service_errors(path):
            local = path.copy(epath.Path(folder) / path.name)
        yield os.fspath(local)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """Yields a temporary local path; what is written to it replaces `path` if the block succeeds.

    Raises:
      UserError: `path` cannot be written. (In the block, write inside of `writing`.)
    """
    path = absolute(path)
    remote = is_remote(path)
    with contextlib.ExitStack() as stack:
        with writing(path):
            make_directory(path.parent)
            folder = tempfile.TemporaryDirectory(
                dir=None if remote else path.parent, prefix='.writing_'
            )
            fresh = Path(stack.enter_context(folder)) / path.name
        yield os.fspath(fresh)
        with writing(path):
            if path.is_dir():
                path.rmtree()
            if remote:
                _upload(epath.Path(fresh), path)
            else:
                fresh.replace(path)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Raises a UserError that `path` cannot be written for system errors in the block."""
    try:
        with service_errors(path):
            yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f'{path} cannot be written ({reason(error)}): make room, or choose another path.'
        ) from error


def _upload(source: epath.Path, destination: epath.Path) -> None:
    if not source.is_dir():
        source.copy(destination, overwrite=True)
        return
    for child in source.iterdir():
        _upload(child, destination / child.name)
