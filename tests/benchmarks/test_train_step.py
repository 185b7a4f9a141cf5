"""The benchmark of the step runs, and its figures follow from what it times."""

import time

import numpy as np
import pytest
import train_step

MODEL = dict(width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
BATCH = 8


@pytest.fixture(scope='module')
def task():
    return train_step.make_task('vit_tiny', 16, 'float32', patch_size=4, **MODEL)


@pytest.fixture(scope='module')
def contender(task):
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 16, 16, 3), np.uint8)
    return train_step.ours(task, images)


@pytest.mark.slow
def test_every_run_of_ours_is_a_whole_training_step(contender):
    losses = [contender.run() for _ in range(20)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])  # it learns: the optimiser is in the step
    assert contender.compile_s > 0 and contender.memory_gib > 0


@pytest.mark.slow
def test_the_compiler_counts_more_than_the_matrix_products(task, contender):
    # Two thirds of the formula would mean that the backward pass had been optimised away.
    assert contender.flops_per_image > 0.9 * task.flops_per_image()


def test_runs_are_timed_in_turn_after_one_unmeasured():
    calls = []
    runs = [lambda: calls.append('a'), lambda: (calls.append('b'), time.sleep(0.01))]
    seconds = train_step.interleaved(runs, repeats=3)
    assert ''.join(calls) == 'ab' + 'ab' * 3
    assert seconds.shape == (2, 3) and seconds[1].min() >= 0.01


def test_the_report_gives_rates_and_ratios_of_what_was_timed(task):
    fast = train_step.Contender('fast', lambda: time.sleep(0.02), 1.0, 0.5, 1e9)
    slow = train_step.Contender('slow', lambda: time.sleep(0.06))
    report = train_step.report(task, [fast, slow], batch_size=BATCH, repeats=3)
    rows = [line.split('|')[1:-1] for line in report.splitlines() if line.startswith('| ')]
    (_, fast_rate, _, _, *_), (name, slow_rate, _, ratio, *_) = rows[1:]
    assert name.strip() == 'slow'
    assert float(fast_rate) == pytest.approx(BATCH / 0.02, rel=0.5)
    assert float(ratio) == pytest.approx(float(fast_rate) / float(slow_rate), rel=0.05)
