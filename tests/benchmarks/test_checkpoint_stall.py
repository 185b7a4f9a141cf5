"""The checkpoint benchmark compares segments that train equally, with and without a save."""

import checkpoint_stall
import loop_overhead
import numpy as np
import pytest
import train_step


@pytest.mark.slow
def test_both_segments_train_equally_and_one_of_them_saves(tmp_path):
    model = dict(width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    task = train_step.make_task('vit_tiny', 16, 'float32', patch_size=4, **model)
    bench = loop_overhead.Bench(task, batch_size=8, steps=4, log_every=2, folder=tmp_path)
    segments = checkpoint_stall.Segments(bench)
    segments.without()
    assert int(bench.state.step) == 5 and bench.checkpoints.steps() == []
    segments.with_save()
    assert int(bench.state.step) == 10
    assert bench.checkpoints.steps() == [6]  # complete, after the segment's first step
    assert len(segments.blocked) == len(segments.waited) == 1 and segments.blocked[0] > 0
    bench.close()
    size = checkpoint_stall.folder_bytes(tmp_path / 'checkpoints/6')
    values = sum(leaf.nbytes for leaf in (*map(np.asarray, _leaves(bench.state)),))
    assert 0.2 * values < size  # compressed: the first moments are nearly zero


def _leaves(state):
    import jax

    return jax.tree.leaves((state.params, state.opt_state))


def test_rows_compare_paired_segments():
    rows = checkpoint_stall.table(
        np.array([10.0, 20.0, 10.0]),
        np.array([11.0, 21.5, 12.0]),
        np.array([0.1, 0.2, 0.3]),
        steps=10,
        size=5_000_000,
        epoch=100,
    )
    medians = [row[1] for row in rows]
    # A step takes 1 s or 2 s, and a save costs 1, 1.5 or 2 s: 1, .75 or 2 steps.
    assert medians == ['1000.0', '200', '1500', '0.04%', '1.00%', '5']
    assert rows[2][2] == '1000 - 2000'
