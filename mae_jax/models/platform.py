"""The platform that a computation is traced for."""

import jax


def platform() -> str:
    """Returns 'cpu', 'gpu' or 'tpu': that of the mesh set around the call, else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return 'gpu' if name in ('cuda', 'rocm') else name
