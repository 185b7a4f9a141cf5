"""Masked Autoencoders in JAX.

Public: `run` a config, `load` a trained model, `load_encoder` for a model of one's own, and
`load_normalize` for its images. The packages below are read best from `experiment/run.py`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_jax.experiment.run import run
    from mae_jax.interop.load import load, load_encoder, load_normalize

_PUBLIC = {
    'run': 'mae_jax.experiment.run',
    'load': 'mae_jax.interop.load',
    'load_encoder': 'mae_jax.interop.load',
    'load_normalize': 'mae_jax.interop.load',
}
__all__ = ['load', 'load_encoder', 'load_normalize', 'run']


def __getattr__(name: str) -> Any:
    # On first use: a mistake in a command line is reported before JAX and Flax are imported.
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
