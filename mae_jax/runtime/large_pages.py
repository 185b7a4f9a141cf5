"""Memory in pages of 2 MiB for training on a CPU, where glibc has to be told before it starts.

XLA takes the temporary memory of every step from the system anew, and the kernel clears it page by
page: in pages of 4 KiB that is a fifth of a step of ViT-B (docs/performance.md).
"""

import contextlib
import os
import platform
import sys
from pathlib import Path

from mae_jax.runtime.xla_flags import uses_cpu

VARIABLE, TUNABLE = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'
SETTING = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def start_with_large_pages() -> None:
    """Starts this very command again, in its own place, where that gives it large pages.

    To be called first of all, by a program's main module. Nothing happens where JAX has an
    accelerator, on other systems than Linux with glibc, where the kernel gives such pages to all or
    to none, within a debugger or a notebook, and where GLIBC_TUNABLES is set, even to nothing.
    """
    if VARIABLE in os.environ or sys.gettrace() or 'IPython' in sys.modules:
        return
    if not uses_cpu() or platform.libc_ver()[0] != 'glibc':
        return
    with contextlib.suppress(OSError):  # it only takes longer then
        if '[madvise]' in SETTING.read_text():
            variables = os.environ | {VARIABLE: TUNABLE}
            os.execve(sys.executable, sys.orig_argv, variables)
