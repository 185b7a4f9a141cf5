"""Gives a training process on a CPU memory in pages of 2 MiB.

XLA allocates the temporary memory of every step anew, and the kernel clears it page by page: with
pages of 4 KiB that takes a fifth of a step of ViT-B (docs/performance.md). glibc reads the setting
when a process starts, hence the restart.
"""

import contextlib
import os
import platform
import sys
from pathlib import Path

from mae_jax.runtime.interrupts import hold_interrupts
from mae_jax.runtime.xla_flags import uses_cpu

VARIABLE, TUNABLE = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'
SETTING = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def start_with_large_pages() -> None:
    """Replaces this process by the same command with large pages, where they have to be asked for.

    Call it before anything else, from a program's main module. It does nothing where JAX has an
    accelerator, on systems other than Linux with glibc, where the kernel gives large pages to every
    process or to none, in a debugger or a notebook, and where GLIBC_TUNABLES is set, even if empty.
    """
    if VARIABLE in os.environ or sys.gettrace() or 'IPython' in sys.modules:
        return
    if not uses_cpu() or platform.libc_ver()[0] != 'glibc':
        return
    with contextlib.suppress(OSError):  # large pages are only faster
        if '[madvise]' in SETTING.read_text():
            variables = os.environ | {VARIABLE: TUNABLE}
            hold_interrupts()
            os.execve(sys.executable, sys.orig_argv, variables)
