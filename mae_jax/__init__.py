"""Masked Autoencoders in JAX.

Public: `run` a config (start from those in `configs`), on images of one's own as an `ArraySource`,
`FileSource` or `HuggingFaceSource` (or any `Source`); `embed` or `segment` images, or `detect`
objects in them; `load` a trained `MAE` or classifier, `load_encoder` an `Encoder` for a model of
one's own, and `load_images` (or `load_normalize`) what it takes; `reconstruct` what is hidden of
images. The packages below are read best from `experiment/run.py`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_jax import configs as configs
    from mae_jax.data.sources.arrays import ArraySource as ArraySource
    from mae_jax.data.sources.files import FileSource as FileSource
    from mae_jax.data.sources.huggingface import HuggingFaceSource as HuggingFaceSource
    from mae_jax.data.sources.protocol import Source as Source
    from mae_jax.experiment.run import run as run
    from mae_jax.inference.detect import detect as detect
    from mae_jax.inference.embed import embed as embed
    from mae_jax.inference.images import load_images as load_images
    from mae_jax.inference.reconstruct import reconstruct as reconstruct
    from mae_jax.inference.segment import segment as segment
    from mae_jax.interop.load import load as load
    from mae_jax.interop.load import load_encoder as load_encoder
    from mae_jax.interop.load import load_normalize as load_normalize
    from mae_jax.models.mae import MAE as MAE
    from mae_jax.models.vit import Encoder as Encoder

__version__ = '0.1.0'
_PUBLIC = {
    'ArraySource': 'mae_jax.data.sources.arrays',
    'Encoder': 'mae_jax.models.vit',
    'FileSource': 'mae_jax.data.sources.files',
    'HuggingFaceSource': 'mae_jax.data.sources.huggingface',
    'MAE': 'mae_jax.models.mae',
    'Source': 'mae_jax.data.sources.protocol',
    'configs': 'mae_jax.configs',
    'detect': 'mae_jax.inference.detect',
    'embed': 'mae_jax.inference.embed',
    'load': 'mae_jax.interop.load',
    'load_encoder': 'mae_jax.interop.load',
    'load_images': 'mae_jax.inference.images',
    'load_normalize': 'mae_jax.interop.load',
    'reconstruct': 'mae_jax.inference.reconstruct',
    'run': 'mae_jax.experiment.run',
    'segment': 'mae_jax.inference.segment',
}
"""Name -> its module, or the module itself."""
__all__ = [
    'ArraySource',
    'Encoder',
    'FileSource',
    'HuggingFaceSource',
    'MAE',
    'Source',
    'configs',
    'detect',
    'embed',
    'load',
    'load_encoder',
    'load_images',
    'load_normalize',
    'reconstruct',
    'run',
    'segment',
]


def __getattr__(name: str) -> Any:
    # On first use: a mistake in a command line is reported before JAX and Flax are imported.
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    import importlib

    module = importlib.import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f'{__name__}.{name}' else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith('__'))]
