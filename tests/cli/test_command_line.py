"""`mae-jax` and `python -m mae_jax`, as a shell starts them."""

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import ROOT
from PIL import Image

import mae_jax
from mae_jax.cli.arguments import config_of
from mae_jax.cli.main import COMMANDS, main, parse_arguments
from mae_jax.cli.train import default_workdir


def shell(*arguments):
    """Exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, '-m', 'mae_jax', *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': ''},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Like `shell`, in this process: in_process(*arguments)."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)  # restored afterwards
        return main([*map(str, arguments)]), *capsys.readouterr()

    return run


@pytest.mark.slow
def test_a_run_is_exported_and_looked_at(pretrained, tmp_path):
    model, image, out = tmp_path / 'model.safetensors', tmp_path / 'a.png', tmp_path / 'grid.png'
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(image)
    status, output, errors = shell('convert', pretrained[0], model)
    assert (status, errors) == (0, '') and 'is written' in output
    status, output, errors = shell('visualize', model, image, '--out', out)
    assert (status, errors) == (0, '') and str(out) in output
    assert Image.open(out).size[0] > 3 * 160


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('fly',), "'fly'"),
        (('visualize', 'runs/x'), 'IMAGE'),
        (('visualize', 'runs/x', 'a.jpg'), 'runs/x is neither a work directory'),
        (('convert', 'x.pth', 'y.safetensors'), 'x.pth does not exist'),
    ],
)
def test_a_mistake_is_one_sentence_on_standard_error(in_process, arguments, message):
    status, output, errors = in_process(*arguments)
    assert status == 1 and output == ''
    assert message in errors and 'Traceback' not in errors
    assert errors.startswith('error: ') and errors.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize('arguments', [('fly',), ('convert', 'x.pth', 'y.safetensors')])
def test_a_mistake_ends_the_process_with_its_status(arguments):
    status, output, errors = shell(*arguments)
    assert status == 1 and output == '' and 'Traceback' not in errors
    assert errors.startswith('error: ') and errors.count('\n') == 1


def test_help_and_wrong_flags_do_not_import_jax():
    code = (
        'import contextlib, sys\n'
        'from mae_jax.cli.main import COMMANDS, parse_arguments\n'
        'from mae_jax.errors import UserError\n'
        'for flag in ("--help", "--no_such_flag"):\n'
        '    for command in COMMANDS:\n'
        '        with contextlib.suppress(SystemExit, UserError):\n'
        '            parse_arguments([command, flag])\n'
        'assert "jax" not in sys.modules\n'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('usage: mae-jax') == len(COMMANDS)


def test_arguments_are_read_in_both_forms_and_home_directories_replaced(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    named = ('train', 'vit_base', '--workdir=~/run', '--config.dataset.path', '~/a=b', '--verbose')
    flagged = ('train', '--config=vit_base', '--workdir', '~/run', '--config.dataset.path=~/a=b')
    for arguments in (named, flagged):
        parsed = parse_arguments(arguments)
        assert (config_of(parsed), parsed.workdir) == ('vit_base', '/home/me/run')
        assert parsed.overrides == ['dataset.path=~/a=b']  # the run replaces it
    older = parse_arguments(('plan', 'vit_base', '--devices=1', '--set', 'a=1', 'b=2', '--mfu=.5'))
    assert older.overrides == ['a=1', 'b=2'] and older.mfu == 0.5
    assert default_workdir('my/config.py:large') == 'runs/config_large'


def test_the_version_and_the_commands_are_printed(capsys):
    for arguments in ((), ('--help',), ('--version',)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        lines = capsys.readouterr().out.splitlines()
        assert lines and max(map(len, lines)) <= 80
    assert lines == [f'mae_jax {mae_jax.__version__}']
