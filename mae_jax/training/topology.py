"""Decides where each device stands in the mesh, by how fast devices reach each other.

A slice is a set of devices with a fast network of their own: a TPU slice, or the GPUs of a host (of
several hosts, where NVLink connects them). JAX numbers the slices: `device.slice_index`. Between
slices is the network of the data centre, which is slower by a factor of ten or more.
"""

import contextlib
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

GIVES_UP = (AssertionError, NotImplementedError, TypeError, ValueError)
"""What JAX raises for devices that are no whole box of a torus, such as some chips of a slice."""


def arrange(devices: Sequence[jax.Device], fsdp: int) -> np.ndarray:
    """Arranges devices as [data, fsdp]: rows of `fsdp` neighbours, each in one slice where it fits.

    `fsdp` communicates most, several times in every layer, and `data` once a step. If `fsdp` does
    not divide the slices, a row has as many devices of each as their greatest common divisor.

    Args:
      devices: of one process or of many; `fsdp` divides their number.
      fsdp: devices that share one copy of the parameters.
    """
    slices = by_slice(devices)
    with contextlib.suppress(*GIVES_UP):
        return _by_network(devices, len(slices), fsdp)
    whole, rest = [], []
    for members in slices:
        members = sorted(members, key=lambda device: device.id)
        fits = len(members) // fsdp * fsdp
        whole += members[:fits]
        rest += members[fits:]
    return np.array(whole + rest, dtype=object).reshape(-1, fsdp)


def _by_network(devices: Sequence[jax.Device], slices: int, fsdp: int) -> np.ndarray:
    """Lets JAX choose neighbours by their coordinates; raises one of GIVES_UP where it cannot."""
    size, rest = divmod(len(devices), slices)
    if rest:
        raise ValueError('slices of different sizes')
    within = math.gcd(fsdp, size)
    shape = size // within, within
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    between = slices * within // fsdp, fsdp // within
    return mesh_utils.create_hybrid_device_mesh(
        shape, between, devices, allow_split_physical_axes=True
    )


def by_slice(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Groups devices by their slice, in its order; those without one (CPUs) are one slice."""
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, 'slice_index', 0), []).append(device)
    return [slices[index] for index in sorted(slices)]


def spans_slices(mesh: jax.sharding.Mesh) -> bool:
    """Returns whether devices that share a copy of the parameters lie in different slices."""
    return any(len(by_slice(row)) > 1 for row in mesh.devices)
