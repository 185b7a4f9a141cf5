"""Named tensors in a file: safetensors, npz, PyTorch's `.pth`. Nothing in a file is ever run.

Each reader gives numpy arrays by name and what else the file states; a file that is damaged, or of
another kind than its name says, ends in a `UserError`.
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
from mae_jax.files.limits import check_expansion, read_npy, reason, regular_size
from mae_jax.files.paths import absolute

Tensors = dict[str, np.ndarray]


def read_safetensors(path: str | os.PathLike) -> tuple[Tensors, dict[str, str]]:
    """(tensors, metadata) of a safetensors file."""
    with local(path) as file, _reading(path, 'safetensors'), safe_open(file, 'numpy') as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, opened.metadata() or {}


def read_safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What its header says beside the tensors; these are not read."""
    with local(path) as file, _reading(path, 'safetensors'), safe_open(file, 'numpy') as opened:
        return opened.metadata() or {}


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes a local file."""
    # The library writes an array's memory as it lies: a transposed view would come out wrong.
    dense = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    Path(path).touch()
    mode = os.stat(path).st_mode
    save_file(dense, path, metadata=metadata)
    os.chmod(path, mode)  # the library's own are for nobody else to read


def read_npz(path: str | os.PathLike) -> Tensors:
    """Tensors of a NumPy archive; one that holds pickled objects is refused."""
    with local(path) as file, _reading(path, 'npz'), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        check_expansion(sum(member.file_size for member in members), os.path.getsize(file))
        return {
            member.filename.removesuffix('.npy'): read_npy(archive.read(member))
            for member in members
        }


def write_npz(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a local file."""
    with open(path, 'wb') as file:
        np.savez(file, **tensors)


def read_pth(path: str | os.PathLike) -> Any:
    """What a PyTorch checkpoint holds: nested dicts with numpy arrays for tensors.

    Read with `weights_only=True`, so that nothing in it is run. `argparse.Namespace`, which
    official training checkpoints hold, is the only class allowed besides PyTorch's own.
    """
    torch = import_torch(f'{path} is a PyTorch file')
    with local(path) as file, torch.serialization.safe_globals([argparse.Namespace]):
        with _reading(path, 'PyTorch'):
            size = os.path.getsize(file)
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    check_expansion(sum(x.file_size for x in archive.infolist()), size)
        try:
            content = torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:  # a damaged file meets every kind of exception
            raise damaged(path, 'PyTorch', _pickle_problem(error)) from error

    met, claimed = {}, 0  # one that stands in many places, which may be more than there is time for

    def as_numpy(node: Any, name: str = 'it') -> Any:
        nonlocal claimed
        if isinstance(node, Mapping):
            if id(node) not in met:
                met[id(node)] = {}
                met[id(node)].update({str(k): as_numpy(x, str(k)) for k, x in node.items()})
            return met[id(node)]
        if not isinstance(node, torch.Tensor):
            return node
        claimed += node.numel() * node.element_size()  # of a view, more than it is made of
        with _reading(path, 'PyTorch'):
            check_expansion(claimed, size)
        if node.dtype == torch.bfloat16:  # NumPy has none
            node = node.float()
        try:
            return node.detach().numpy()
        except (TypeError, RuntimeError) as error:
            told = f'{name} is {node.layout} of {node.dtype}, which NumPy does not have'
            raise damaged(path, 'PyTorch', told) from error

    try:
        return as_numpy(content)
    except RecursionError as error:
        raise damaged(path, 'PyTorch', 'it is nested too deeply') from error


def write_pth(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a local file with {'model': tensors}, as the official checkpoints are."""
    torch = import_torch(f'{Path(path).name} is to be a PyTorch file')
    state = {n: torch.from_numpy(np.array(x)) for n, x in tensors.items()}
    try:
        torch.save({'model': state}, path)
    except RuntimeError as error:  # what PyTorch makes of a full disk
        raise OSError(str(error).splitlines()[0]) from error


def import_torch(reason: str) -> Any:
    """PyTorch, or a UserError that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f'{reason}, which needs PyTorch: pip install torch.') from error
    return torch


def _pickle_problem(error: Exception) -> str:
    """In our words: PyTorch's own recommend to try again without the protection."""
    text = str(error)
    if 'GLOBAL ' in text:  # "Unsupported global: GLOBAL os.system was not an allowed global ..."
        name = text.split('GLOBAL ', 1)[1].split()[0]
        return f'it would run {name}, which is never done; have its author save the tensors alone'
    return 'it is cut off or damaged, or never was one; get it again'


@contextlib.contextmanager
def _reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file meets every kind
        raise damaged(path, kind, error) from error


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
        try:
            regular_size(path)
        except OSError as error:
            raise UserError(f'{path} cannot be read: {reason(error)}.') from error
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield os.fspath(path.copy(epath.Path(folder) / path.name))


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """A local path to write to, which takes the place of `path` when the block ends well.

    Raises:
      UserError: nothing can be written there. (Write in a block of `writing`.)
    """
    path = absolute(path)
    remote = '://' in os.fspath(path)
    with contextlib.ExitStack() as stack:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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
    """What goes wrong in the block is that `path` cannot be written."""
    try:
        yield
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
