"""The startup benchmark times real processes up to the log line of their first step."""

import numpy as np
import pytest
import startup
from helpers.commands import TINY

ARGUMENTS = [*TINY[:2], '--config.num_steps=1', '--config.log_every_steps=1', *TINY[3:6]]


@pytest.mark.slow
def test_start_is_timed_to_its_first_step_and_fills_the_cache(tmp_path):
    seconds = startup.start(ARGUMENTS, tmp_path / 'cache', tmp_path / 'run')
    assert len(seconds) == len(startup.STAGES) and min(seconds) >= 0 and sum(seconds) > 0.5
    assert (tmp_path / 'run/metrics.jsonl').read_text().count('"loss"') == 1
    assert list((tmp_path / 'cache').iterdir())


@pytest.mark.slow
def test_process_without_a_step_raises_an_error_with_its_output(tmp_path):
    with pytest.raises(RuntimeError, match="no config field 'nothing'"):
        startup.start(['--config=configs/default.py', '--config.nothing=1'], tmp_path, tmp_path)


def test_table_has_medians_and_ratios():
    cold = [[1.0, 2.0, 7.0], [1.0, 2.0, 17.0], [1.0, 2.0, 9.0]]
    warm = [[1.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    head, rows = startup.table(np.array([cold, warm]))
    assert rows[0] == ['cold, s', '12.0', '10.0 - 20.0', '1.0', '2.0', '9.0']
    assert rows[1] == ['warm, s', '6.0', '4.0 - 6.0', '1.0', '2.0', '3.0']
    assert rows[2] == ['warm / cold', '0.50', '0.30 - 0.50', '1.00', '1.00', '0.33']
    assert len(head) == 6
