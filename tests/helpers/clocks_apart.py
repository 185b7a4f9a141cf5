"""On import, and where CLOCKS_APART is set, sets the clocks of process i i days ahead.

They also run 1 + i times as fast. What reads the time through `time` from then on is concerned.
"""

import os
import time
from collections.abc import Callable

PROCESS = int(os.environ.get('JAX_PROCESS_ID', '0')) if 'CLOCKS_APART' in os.environ else 0


def _apart(clock: Callable[[], float]) -> Callable[[], float]:
    start = clock()
    return lambda: start + 86_400.0 * PROCESS + (1 + PROCESS) * (clock() - start)


if PROCESS:
    time.time, time.monotonic = _apart(time.time), _apart(time.monotonic)
