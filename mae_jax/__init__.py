"""Masked Autoencoders in JAX.

Public: `run` a config, `configs` to start from, `load` a trained model, `load_encoder` for a model
of one's own, and `load_normalize` for its images. The packages below are read best from
`experiment/run.py`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_jax import configs as configs
    from mae_jax.experiment.run import run as run
    from mae_jax.interop.load import load as load
    from mae_jax.interop.load import load_encoder as load_encoder
    from mae_jax.interop.load import load_normalize as load_normalize

__version__ = '0.1.0'
_PUBLIC = {
    'configs': 'mae_jax.configs',
    'load': 'mae_jax.interop.load',
    'load_encoder': 'mae_jax.interop.load',
    'load_normalize': 'mae_jax.interop.load',
    'run': 'mae_jax.experiment.run',
}
"""Name -> its module, or the module itself."""
__all__ = ['configs', 'load', 'load_encoder', 'load_normalize', 'run']


def __getattr__(name: str) -> Any:
    # On first use: a mistake in a command line is reported before JAX and Flax are imported.
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    import importlib

    module = importlib.import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f'{__name__}.{name}' else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith('__'))]
