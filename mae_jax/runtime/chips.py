"""Lists accelerators with their peak speed, which MFU is a share of, and their memory."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mae_jax.errors import UserError

TPU_SHARE = 0.9
"""Share of a TPU's memory that a run can use; XLA and the system need the rest."""
GPU_SHARE = 0.75
"""Share of a GPU's memory that JAX's allocator takes where no variable gives another."""
MEMORY_VARIABLES = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
"""Environment variables that give the share of a GPU's memory; the second is the older name."""


class Chip(NamedTuple):
    """Describes one device as JAX counts devices, with the figures of the vendor's data sheet."""

    name: str
    """Its common name, as `mae-jax plan --chip` takes it."""
    device_kinds: tuple[str, ...]
    """Beginnings of JAX's `device_kind`."""
    flops: float
    """Peak of dense bfloat16 matrix products, FLOP/s."""
    memory: float
    """GiB, a few percent of which the system reserves."""
    clock: float | None = None
    """Cycles a second of XLA's cost model; None where it has none. At the peak a v5e does 131,072
    operations a cycle: four arrays of 128 x 128, two operations each."""

    @property
    def is_gpu(self) -> bool:
        """Returns whether it is a GPU; all others are TPUs."""
        return any(kind.startswith('NVIDIA') for kind in self.device_kinds)


CHIPS = (
    Chip('v2', ('TPU v2',), 22.5e12, 8),  # a core, of two a chip
    Chip('v3', ('TPU v3',), 61.5e12, 16),  # a core, of two a chip
    Chip('v4', ('TPU v4',), 275e12, 32, clock=1.05e9),
    Chip('v5e', ('TPU v5 lite', 'TPU v5e'), 197e12, 16, clock=1.5e9),
    Chip('v5p', ('TPU v5', 'TPU v5p'), 459e12, 95, clock=1.75e9),
    Chip('v6e', ('TPU v6 lite', 'TPU v6e'), 918e12, 32, clock=1.75e9),
    Chip('a100', ('NVIDIA A100-SXM4-80GB', 'NVIDIA A100 80GB'), 312e12, 80),
    Chip('a100-40gb', ('NVIDIA A100',), 312e12, 40),
    Chip('h100', ('NVIDIA H100 80GB HBM3',), 989e12, 80),  # SXM
    Chip('h100-pcie', ('NVIDIA H100 PCIe',), 756e12, 80),
    Chip('h100-nvl', ('NVIDIA H100 NVL',), 835e12, 94),
    Chip('h200', ('NVIDIA H200',), 989e12, 141),
    Chip('l4', ('NVIDIA L4',), 121e12, 24),
    Chip('l40', ('NVIDIA L40',), 181e12, 48),
    Chip('l40s', ('NVIDIA L40S',), 362e12, 48),
)


def named_chip(name: str) -> Chip:
    """Returns the chip with a common name, in upper or lower case.

    Raises:
      UserError: no chip has that name.
    """
    for chip in CHIPS:
        if chip.name == name.lower():
            return chip
    raise UserError(
        f'there is no chip {name!r} to plan for: choose from {", ".join(c.name for c in CHIPS)}.'
    )


def usable_share(chip: Chip, environ: Mapping[str, str] = os.environ) -> float:
    """Returns the share of a chip's memory that a run can use.

    Raises:
      UserError: a variable of `MEMORY_VARIABLES` is no number above 0.
    """
    if not chip.is_gpu:
        return TPU_SHARE
    given = [name for name in MEMORY_VARIABLES if environ.get(name)]
    if not given:
        return GPU_SHARE
    try:
        share = float(environ[given[0]])
    except ValueError:
        share = 0.0
    if share <= 0:
        raise UserError(f'{given[0]}={environ[given[0]]} must be a share of the memory: .9 is 90%.')
    return share


def choose_dtype(platform: str, cpu_info: str | None = None) -> str:
    """Returns the dtype of activations for `model.dtype='auto'` on a platform of JAX.

    bfloat16, but float32 on a CPU that has no instructions for products in bfloat16 and would
    imitate them.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      cpu_info: the text of Linux's /proc/cpuinfo; None reads it, and takes a missing one as empty.
    """
    if platform != 'cpu':
        return 'bfloat16'
    if cpu_info is None:
        path = Path('/proc/cpuinfo')
        cpu_info = path.read_text() if path.exists() else ''
    has_bfloat16 = re.search(r'\b(amx_bf16|avx512_bf16)\b', cpu_info)
    return 'bfloat16' if has_bfloat16 else 'float32'


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of a device kind; None for one that is not in the table.

    The longest matching beginning decides: 'NVIDIA H100 80GB HBM3' before 'NVIDIA H100'.
    """
    peaks = {kind: chip.flops for chip in CHIPS for kind in chip.device_kinds}
    kinds = [kind for kind in peaks if device_kind.startswith(kind)]
    return peaks[max(kinds, key=len)] if kinds else None
