"""Cases of a parametrized test that run only with `-m slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after(quick: int, cases: Iterable[Any]) -> list[Any]:
    """Returns the cases, all but the first `quick` of them marked slow."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    marked = [pytest.param(*case, marks=pytest.mark.slow) for case in cases[quick:]]
    return [*(pytest.param(*case) for case in cases[:quick]), *marked]
