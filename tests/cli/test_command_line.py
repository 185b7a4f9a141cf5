"""`mae-jax` and `python -m mae_jax`, as a shell starts them."""

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import ROOT
from PIL import Image


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


@pytest.mark.slow
def test_a_run_is_exported_and_looked_at(pretrained, tmp_path):
    model, image, out = tmp_path / 'model.safetensors', tmp_path / 'a.png', tmp_path / 'grid.png'
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(image)
    status, told, complaints = shell('convert', pretrained[0], model)
    assert (status, complaints) == (0, '') and 'is written' in told
    status, told, complaints = shell('visualize', model, image, '--out', out)
    assert (status, complaints) == (0, '') and str(out) in told
    assert Image.open(out).size[0] > 4 * 160


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ((), 'command'),
        (('fly',), "'fly'"),
        (('visualize', 'runs/x'), 'IMAGE'),
        (('visualize', 'runs/x', 'a.jpg'), 'runs/x is neither a work directory'),
        (('convert', 'x.pth', 'y.safetensors'), 'x.pth does not exist'),
    ],
)
def test_a_mistake_is_one_sentence_on_standard_error(arguments, told):
    status, output, complaints = shell(*arguments)
    assert status == 1 and output == ''
    assert told in complaints and 'Traceback' not in complaints
    assert complaints.splitlines()[-1].startswith('error: ')
