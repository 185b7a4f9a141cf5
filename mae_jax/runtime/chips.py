"""What accelerators can do: the peak that MFU is a share of, and the memory a run must fit into."""

from typing import NamedTuple

from mae_jax.errors import UserError


class Chip(NamedTuple):
    """A kind of device, as JAX counts devices; figures of the vendors' data sheets."""

    name: str
    """What people call it."""
    device_kinds: tuple[str, ...]
    """What JAX's `device_kind` starts with."""
    flops: float
    """Dense bfloat16 products, FLOP/s."""
    memory: float
    """GiB, of which the system keeps a few percent."""


CHIPS = (
    Chip('v2', ('TPU v2',), 22.5e12, 8),  # a core, of two a chip
    Chip('v3', ('TPU v3',), 61.5e12, 16),  # a core, of two a chip
    Chip('v4', ('TPU v4',), 275e12, 32),
    Chip('v5e', ('TPU v5 lite', 'TPU v5e'), 197e12, 16),
    Chip('v5p', ('TPU v5', 'TPU v5p'), 459e12, 95),
    Chip('v6e', ('TPU v6 lite', 'TPU v6e'), 918e12, 32),
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
    """The chip that people call so, in any case; a UserError where there is none."""
    for chip in CHIPS:
        if chip.name == name.lower():
            return chip
    raise UserError(
        f'there is no chip {name!r} to plan for: choose from {", ".join(c.name for c in CHIPS)}.'
    )


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of bf16 matrix products a device of this kind can reach; None where not known.

    The longest name of the table that `device_kind` starts with counts ('NVIDIA H100 80GB HBM3').
    """
    peaks = {kind: chip.flops for chip in CHIPS for kind in chip.device_kinds}
    kinds = [kind for kind in peaks if device_kind.startswith(kind)]
    return peaks[max(kinds, key=len)] if kinds else None
