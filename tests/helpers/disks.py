"""Disks that fail, for the tests: really full, really read-only."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Within it, what this process writes beyond `size` bytes of a file fails, as if disk-full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(path: Path, size: str = '2m') -> Iterator[Path]:
    """Mounts a file system of `size` there; skips the test where that is not allowed."""
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('may not mount here')
    try:
        yield path
    finally:
        subprocess.run(['umount', '--lazy', path], check=True)


def make_read_only(path: Path) -> None:
    """Root writes into read-only directories, but not onto a read-only disk."""
    subprocess.run(['mount', '-o', 'remount,ro', path], check=True)
