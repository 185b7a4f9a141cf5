"""The launchers are shell that shellcheck has no objection to."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launchers import LAUNCH

SCRIPTS = ('local.sh', 'slurm.sbatch', 'tpu_pod.sh')


@pytest.mark.parametrize('script', SCRIPTS)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which('shellcheck') or shutil.which(
        'shellcheck', path=Path(sys.executable).parent
    )
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install -e '.[test]' brings it")
    done = subprocess.run(
        [shellcheck, '--shell=bash', LAUNCH / script], capture_output=True, text=True
    )
    assert done.stdout == '' and done.returncode == 0
