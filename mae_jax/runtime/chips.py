"""Lists accelerators with their peak speed, which MFU is a share of, and their memory."""

from typing import NamedTuple

from mae_jax.errors import UserError


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


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of a device kind; None for one that is not in the table.

    The longest matching beginning decides: 'NVIDIA H100 80GB HBM3' before 'NVIDIA H100'.
    """
    peaks = {kind: chip.flops for chip in CHIPS for kind in chip.device_kinds}
    kinds = [kind for kind in peaks if device_kind.startswith(kind)]
    return peaks[max(kinds, key=len)] if kinds else None
