"""The loop benchmark runs, and both variants take the same number of steps."""

import loop_overhead
import pytest
import train_step


@pytest.mark.slow
def test_both_variants_train_and_the_loop_logs_and_saves(tmp_path):
    model = dict(width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    task = train_step.make_task('vit_tiny', 16, 'float32', patch_size=4, **model)
    bench = loop_overhead.Bench(task, batch_size=8, steps=4, log_every=2, folder=tmp_path)
    bench.bare()
    assert int(bench.state.step) == 4
    bench.looped()
    assert int(bench.state.step) == 8
    bench.close()
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2
    assert bench.checkpoints.steps() == [8]
