"""The import contracts of setup.cfg hold, and an import against them is noticed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT

pytest.importorskip('importlinter')


def lint_imports(folder: Path) -> tuple[int, str]:
    """Runs import-linter by the setup.cfg of `folder`: (exit status, output)."""
    command = [Path(sys.executable).with_name('lint-imports'), '--no-cache']
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return process.returncode, process.stdout + process.stderr


def test_imports_go_one_way():
    status, output = lint_imports(ROOT)
    assert status == 0, output


def test_an_import_against_a_contract_is_refused(tmp_path):
    """One upwards, one between independent packages, one hidden in a function, a loose module."""
    shutil.copy(ROOT / 'setup.cfg', tmp_path)
    ignored = shutil.ignore_patterns('__pycache__', '*.c', '*.h', '*.so')
    package = shutil.copytree(ROOT / 'mae_jax', tmp_path / 'mae_jax', ignore=ignored)
    planted = {
        'models/vit.py': 'import mae_jax.training.loop',
        'pretext/masking.py': 'from mae_jax.models import patches',
        'training/state.py': 'def planted():\n    from mae_jax.tasks import pretrain',
    }
    for name, code in planted.items():
        with open(package / name, 'a') as file:
            file.write(f'\n\n{code}\n')
    (package / 'misc.py').touch()
    status, output = lint_imports(tmp_path)
    assert status != 0
    for violation in (
        'mae_jax.models is not allowed to import mae_jax.training',
        'mae_jax.pretext is not allowed to import mae_jax.models',
        'mae_jax.training is not allowed to import mae_jax.tasks',
        'not listed as layers:\n\n- mae_jax.misc',
    ):
        assert violation in output
