"""Counted savings of masking agree with counts by hand, and the table has counts and times."""

import time

import masking_speedup
import measure
import numpy as np
import pytest

OPTIONS = dict(image_size=224, dtype='float32')
SHALLOW = dict(depth=2, decoder_width=512, decoder_heads=16)


def products_by_hand(mask_tokens: bool, decoder_depth: int) -> float:
    """Counts forward and backward pass of SHALLOW ViT-L: a product of [a, b] and [b, c] is 2abc."""

    def product(a, b, c):
        return 2 * a * b * c

    def block(tokens, width, heads):
        head = width // heads
        attention = product(tokens, width, 3 * width) + product(tokens, width, width)
        attention += heads * (product(tokens, head, tokens) + product(tokens, tokens, head))
        return attention + product(tokens, width, 4 * width) + product(tokens, 4 * width, width)

    patches, pixels = 14 * 14, 16 * 16 * 3
    seen = patches if mask_tokens else 49
    embed = product(seen, pixels, 1024)
    rest = 2 * block(seen + 1, 1024, 16) + product(seen + 1, 1024, 512)
    rest += decoder_depth * block(patches + 1, 512, 16) + product(patches, 512, pixels)
    # Each product has two in its backward pass; the gradient of the images is not needed.
    return 2 * embed + 3 * rest


@pytest.fixture(scope='module')
def counted():
    rows = []
    for mask_tokens, depth in ((True, 2), (False, 2), (False, 1)):
        task = masking_speedup.make_row_task('vit_large', mask_tokens, depth, **OPTIONS, **SHALLOW)
        rows.append((masking_speedup.xla_flops(task), products_by_hand(mask_tokens, depth)))
    return np.array(rows).T


@pytest.mark.slow
def test_xla_counts_the_products_of_a_whole_step_and_little_else(counted):
    xla, by_hand = counted
    assert np.all(xla > by_hand) and np.all(xla < 1.01 * by_hand)


@pytest.mark.slow
def test_saving_equals_the_count_by_hand(counted):
    xla, by_hand = counted
    np.testing.assert_allclose(xla[0] / xla, by_hand[0] / by_hand, rtol=5e-3)


def test_model_with_a_loop_is_refused():
    task = masking_speedup.make_row_task('vit_tiny', False, 1, **OPTIONS, scan=True)
    with pytest.raises(AssertionError, match='loop'):
        masking_speedup.xla_flops(task)


def cells(table: str) -> list[dict[str, str]]:
    head, _, *rows = (
        [cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()
    )
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_table_has_ratios_of_the_measurement_and_of_the_paper():
    costs = zip(masking_speedup.ROWS, (400e9, 100e9, 80e9), (4.0, 2.0, 1.0), strict=True)
    rows = [
        masking_speedup.Row('vit_large', *row, flops, flops, 2**30, np.full(3, seconds))
        for row, flops, seconds in costs
    ]
    unmeasured = [r._replace(held_bytes=None, seconds=None) for r in rows]
    for table in masking_speedup.table(rows, 8), masking_speedup.table(unmeasured, 8):
        printed = cells(table)
        assert [r['fewer'] for r in printed] == ['1.00x', '4.00x', '5.00x']
        assert [r['Table 2'] for r in printed] == ['1.0x', '2.8x', '3.7x']
        assert [r['Table 1c'] for r in printed] == ['', '3.3x', '']
    timed = cells(masking_speedup.table(rows, 8))
    assert [r['images/s'] for r in timed] == ['2', '4', '8']
    assert [r['faster'] for r in timed] == ['1.00x', '2.00x', '4.00x']
    assert 'faster' not in printed[0]


def test_ratios_of_the_paper_for_vit_huge_use_its_own_hours():
    rows = [masking_speedup.Row('vit_huge', *row, 1.0, 1.0) for row in masking_speedup.ROWS]
    printed = cells(masking_speedup.table(rows, 8))
    assert [r['Table 2'] for r in printed] == ['1.0x', '3.5x', '4.1x']


def test_processor_clock_excludes_waiting():
    def waits():
        time.sleep(0.05)

    seconds = measure.interleaved([waits], repeats=2, clock=masking_speedup.CLOCKS['cpu'])
    assert seconds.shape == (1, 2) and seconds.max() < 0.02


def tiny_rows() -> list[masking_speedup.Row]:
    return [masking_speedup.Row('vit_tiny', *row, 1.0, 1.0) for row in masking_speedup.ROWS]


MODEL = dict(patch_size=4, width=32, depth=1, heads=2, decoder_width=16, decoder_heads=2)
TINY = OPTIONS | MODEL | {'image_size': 16}


@pytest.mark.slow
def test_steps_are_run_and_timed():
    rows, note = masking_speedup.measure(tiny_rows(), batch_size=2, repeats=2, clock='cpu', **TINY)
    assert all(row.seconds.shape == (2,) and row.seconds.min() > 0 for row in rows)
    assert all(row.held_bytes > 0 for row in rows)
    assert 'batch 2' in note and 'CPU time' in note


@pytest.mark.slow
def test_variant_that_does_not_fit_is_reported_and_not_run(monkeypatch):
    monkeypatch.setattr(masking_speedup, 'free_bytes', lambda: 1000)
    rows, note = masking_speedup.measure(tiny_rows(), batch_size=2, repeats=2, clock='wall', **TINY)
    assert all(row.seconds is None for row in rows)
    assert 'vit_tiny was not run' in note and '--batch_size' in note
