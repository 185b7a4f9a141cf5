"""Masked Autoencoders in JAX."""

from typing import Any

_PUBLIC = ('load', 'load_encoder', 'load_normalize')
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    # On first use: a mistake in a command line is told before JAX and Flax are imported.
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from mae_jax.interop import load

    return getattr(load, name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
