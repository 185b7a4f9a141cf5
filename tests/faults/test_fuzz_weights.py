"""Weights of anybody: each file or directory is loaded, or refused with a sentence."""

import pytest
from helpers.fuzzing import fuzz

MEMORY = 1 << 30
"""Four times `limits.FREE_BYTES`, what a small file may hold: for the copies that loading makes."""


def check(count: int, start: int = 0) -> None:
    report = fuzz('weights', count, start=start, memory=MEMORY)
    print(report)
    assert not report.failures, '\n'.join(report.failures)
    assert report.memory < MEMORY
    assert report.read + report.refused == count
    assert min(report.read, report.refused) > count // 20  # there is something to see


@pytest.mark.slow
def test_forty_mutated_checkpoints_are_loaded_or_refused():
    check(40)


@pytest.mark.exhaustive
def test_two_thousand_mutated_checkpoints_are_loaded_or_refused():
    check(2_000)
