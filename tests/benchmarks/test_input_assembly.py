"""The benchmark of what the input costs beside decoding measures running streams."""

import re

import input_assembly
import pytest

SMALL = ('--batch_size=16', '--image_size=8', '--batches=2', '--repeats=2', '--threads=1')


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_processor_time_is_counted_where_it_is_spent(workers, capsys):
    input_assembly.main([*SMALL, f'--workers={workers}', '--sleep_ms=1'])
    row = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[0] == str(workers) and re.fullmatch(r'\d+ - \d+', cells[2])
    training, rate = float(cells[1]), float(cells[4])
    assert training > 0
    assert 0 < rate < 1000  # one thread sleeps for a millisecond for each image
    assert workers or float(cells[3]) == 0
