"""The command `mae-jax` in this process, and files to convert."""

import shutil
import sys

import pytest
from helpers.official_files import CASE, SQUARE, SQUARE_OPTIONS, save_official

from mae_jax.cli import convert
from mae_jax.cli.main import main, parse_arguments


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `mae-jax` with arguments: run(*arguments) -> (exit status, what it printed)."""
    monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)  # restored afterwards

    def run(*arguments):
        try:
            status = main([*map(str, arguments)])
        except SystemExit as end:  # of --help
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


@pytest.fixture
def official(tmp_path):
    """A file of official names: (path, tensors)."""
    return save_official(tmp_path / 'official.safetensors', CASE)


@pytest.fixture
def square(tmp_path):
    """The same for square images, which Hugging Face's autoencoder needs."""
    return save_official(tmp_path / 'square.safetensors', SQUARE)


@pytest.fixture(scope='package')
def converted_hub(tmp_path_factory):
    """The square model as a directory of Hugging Face, not to be changed."""
    folder = tmp_path_factory.mktemp('converted')
    path, _ = save_official(folder / 'square.safetensors', SQUARE)
    arguments = map(str, ('convert', path, folder / 'hub', *SQUARE_OPTIONS))
    convert.run(parse_arguments(list(arguments)))
    return folder / 'hub'


@pytest.fixture
def hub(converted_hub, tmp_path):
    """A copy of `converted_hub` that a test may change."""
    return shutil.copytree(converted_hub, tmp_path / 'hub')
