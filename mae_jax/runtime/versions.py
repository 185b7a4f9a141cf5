"""Versions of the software that a result depends on."""

import sys

import flax
import jax


def versions() -> dict[str, str]:
    """Returns the versions of mae_jax, JAX and Flax by name."""
    package = sys.modules[__name__.partition('.')[0]]  # what lies below imports nothing from it
    return {
        'mae_jax': package.__version__,
        'jax': jax.__version__,
        'flax': flax.__version__,
    }
