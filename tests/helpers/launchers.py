"""Starts the launchers of `launch/`, with small stand-ins for the programs that they call."""

import os
import signal
import subprocess
import time
from pathlib import Path

from helpers.commands import ROOT

LAUNCH = ROOT / 'launch'


def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """Starts a launcher, without the settings that this process has for one."""
    settings = (
        'JAX_',
        'SLURM_',
        'CUDA_',
        'DRY_RUN',
        'PORT',
        'RESTARTS',
        'GRACE',
        'PYTHON',
        'XDG_',
        'TMPDIR',
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
    return subprocess.Popen(
        ['bash', LAUNCH / script, *arguments],
        env=clean | {'JAX_PLATFORMS': 'cpu'} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # bash never heeds what it was started to ignore, as a test in the background is.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(
    script: str, *arguments: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a launcher to its end."""
    process = start(script, *arguments, **environment)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def stand_in(path: Path, program: str) -> str:
    """Writes an executable of a few lines of bash, and returns its path."""
    path.write_text(f'#!/usr/bin/env bash\ncd {path.parent}\n{program}')
    path.chmod(0o755)
    return str(path)


def wait_for(*paths: Path) -> None:
    """Waits until all of the files exist, for 30 seconds at most."""
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f'no {paths}'
        time.sleep(0.05)
