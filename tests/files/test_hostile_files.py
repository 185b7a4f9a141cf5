"""The hostile files that converters must refuse do run code in a reader that trusts them."""

import contextlib

import numpy as np
import pytest
from helpers import hostile_files


def live(functions) -> list:
    return [make for make in functions if make.__name__.endswith('runs_code')]


@pytest.mark.parametrize('make', live(hostile_files.PTH))
def test_code_in_a_pth_runs_where_pickles_are_trusted(make, tmp_path):
    torch = pytest.importorskip('torch')
    with contextlib.suppress(RuntimeError):
        torch.load(make(tmp_path), weights_only=False)
    assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize('make', [*live(hostile_files.OTHERS), hostile_files.pickle_npz])
def test_code_in_an_npz_runs_where_pickles_are_trusted(make, tmp_path):
    with contextlib.suppress(TypeError):
        dict(np.load(make(tmp_path), allow_pickle=True))
    assert (tmp_path / 'ran').exists()
