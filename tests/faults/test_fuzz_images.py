"""Images of anybody: each is read, or refused with a sentence. Nothing else happens.

The bound on memory is that of `image_limits.MAX_IMAGE_PIXELS`: what decoding the largest picture
that is allowed may take, with the copies that a conversion makes.
"""

import pytest
from helpers.fuzzing import fuzz

MEMORY = 3 << 29  # 1.5 GiB


def check(count: int) -> None:
    report = fuzz('images', count, memory=MEMORY)
    print(report)
    assert not report.failures, '\n'.join(report.failures)
    assert report.memory < MEMORY
    assert report.read + report.refused == count
    assert min(report.read, report.refused) > count // 20  # there is something to see


def test_two_hundred_mutated_images_are_read_or_refused():
    check(200)


@pytest.mark.slow
def test_two_thousand_mutated_images_are_read_or_refused():
    check(2_000)


@pytest.mark.exhaustive
def test_twenty_thousand_mutated_images_are_read_or_refused():
    check(20_000)
