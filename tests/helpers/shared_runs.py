"""Finished runs that several tests, in several processes, start from: each is made once."""

import contextlib
import fcntl
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
from ml_collections import ConfigDict

from mae_jax.experiment.run import run
from mae_jax.training import sharding


@contextlib.contextmanager
def first_devices(count: int = 1) -> Iterator[None]:
    """Makes meshes of the first `count` of this process's devices: they compile sooner than 8."""
    make_mesh, first = sharding.make_mesh, jax.devices()[:count]

    def make(fsdp: int = 1, devices=None):
        return make_mesh(fsdp, first if devices is None else devices)

    with mock.patch.object(sharding, 'make_mesh', make):
        yield


@contextlib.contextmanager
def temporary_copy(source: Path, target: Path) -> Iterator[None]:
    """Copies a directory, and removes the copy in the end."""
    shutil.copytree(source, target)
    try:
        yield
    finally:
        shutil.rmtree(target)


def shared_folder(tmp_path_factory) -> Path:
    """Returns a folder that all processes of these tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if 'PYTEST_XDIST_WORKER' in os.environ else own


class SharedRun(NamedTuple):
    """A finished run.

    Attributes:
      workdir: this process's copy of its directory.
      state: the state that it returned, as NumPy arrays.
      config: of the process that made it.
    """

    workdir: Path
    state: Any
    config: ConfigDict


def shared_run(
    tmp_path_factory,
    name: str,
    config: ConfigDict,
    *,
    within: contextlib.AbstractContextManager | None = None,
) -> SharedRun:
    """Returns a finished run of `config`.

    The first process that asks for `name` runs it, in the context of `within`; the others wait.
    """
    folder = shared_folder(tmp_path_factory) / f'shared_{name}'
    folder.mkdir(exist_ok=True)
    workdir, result = folder / 'run', folder / 'result'
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            with within or contextlib.nullcontext(), first_devices():
                state = run(config, workdir)
            result.write_bytes(pickle.dumps((jax.device_get(state), config)))
        copy = shutil.copytree(workdir, tmp_path_factory.mktemp(name) / 'run')
    return SharedRun(copy, *pickle.loads(result.read_bytes()))
