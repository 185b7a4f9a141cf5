"""A batch through a model of ours and through another library's, where that is installed."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mae_jax.build_task import image_size, make_architecture
from mae_jax.errors import UserError
from mae_jax.interop import huggingface
from mae_jax.interop.foreign import Foreign
from mae_jax.interop.modules import kind_of, make_module
from mae_jax.interop.tensor_files import Tensors
from mae_jax.interop.trained import Trained, flat
from mae_jax.interop.translate import to_theirs

BATCH = 2
TOLERANCE = 1e-4
"""Largest difference of an output, in units of the largest output."""


def check(foreign: Foreign, trained: Trained) -> str:
    """Runs both on random images, and says how far apart they are, or why neither was run.

    An autoencoder and Hugging Face's own are run by transformers; the others by timm. Tensors that
    are in another spelling are brought into that library's by way of ours.

    Raises:
      UserError: the outputs differ by more than `TOLERANCE`.
    """
    kind = kind_of(flat(trained)).name
    library = 'transformers' if kind == 'mae' or foreign.spelling == 'huggingface' else 'timm'
    try:
        import torch

        module = __import__(library)
    except ImportError:
        return f'not run beside {library}, which is not installed'
    height, width = image_size(trained.config)
    if kind == 'mae' and height != width:
        return 'not run beside transformers, whose ViTMAE takes squares alone'
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, height, width, trained.config.dataset.channels))
    images = images.astype(np.float32)
    patches = (height * width) // make_architecture(trained.config.model)['patch_size'] ** 2
    noise = rng.random((BATCH, patches), np.float32)
    run = _run_transformers if library == 'transformers' else _run_timm
    with torch.no_grad():
        theirs = run(foreign, trained, torch.from_numpy(images.transpose(0, 3, 1, 2)), noise)
    ours = run_ours(trained, images, noise)
    difference = np.abs(ours - theirs).max()
    if not difference <= TOLERANCE * np.abs(theirs).max():
        raise UserError(
            f'The model gives other outputs than {library} {module.__version__}: they differ by up '
            f'to {difference:.2g}, where the largest is {np.abs(theirs).max():.2g}.'
        )
    return (
        f'run beside {library} {module.__version__}: the largest difference of an output is '
        f'{difference:.1e} ({np.abs(theirs).max():.1f} is the largest output)'
    )


def run_ours(trained: Trained, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Prediction [B,N,P*P*C], logits [B,classes] or tokens [B,1+N,D], by the kind of model."""
    kind = kind_of(flat(trained))
    module = make_module(trained.config, kind).clone(dtype=np.float32)
    params = trained.params['encoder'] if kind.name == 'encoder' else trained.params
    variables = {'params': params, **trained.model_state}
    if kind.name != 'mae':
        return np.asarray(jax.jit(module.apply)(variables, images))
    return np.asarray(jax.jit(module.apply)(variables, images, noise=noise).prediction)


def _run_transformers(foreign: Foreign, trained: Trained, images: Any, noise: np.ndarray) -> Any:
    import torch
    import transformers

    kind = kind_of(flat(trained))
    tensors = foreign.tensors
    if foreign.spelling != 'huggingface':
        tensors = to_theirs(trained, 'huggingface')
    elif kind.name == 'encoder':
        tensors = {name.removeprefix('vit.'): tensor for name, tensor in tensors.items()}
    transformers.utils.logging.disable_progress_bar()
    options = dict(add_pooling_layer=False) if kind.name == 'encoder' else {}
    with tempfile.TemporaryDirectory() as folder:
        huggingface.write(Path(folder) / 'model', tensors, trained.config, kind)
        architecture = getattr(transformers, huggingface.ARCHITECTURES[kind.name])
        model = architecture.from_pretrained(Path(folder) / 'model', **options).eval()
    if kind.name == 'mae':
        return model(images, noise=torch.from_numpy(noise)).logits.numpy()
    outputs = model(images)
    return (outputs.logits if kind.name == 'classifier' else outputs.last_hidden_state).numpy()


def _run_timm(foreign: Foreign, trained: Trained, images: Any, noise: np.ndarray) -> Any:
    import timm.models.vision_transformer as timm_vit
    import torch

    config, kind = trained.config, kind_of(flat(trained))
    sizes = make_architecture(config.model)
    model = timm_vit.VisionTransformer(
        img_size=image_size(config),
        patch_size=sizes['patch_size'],
        in_chans=config.dataset.channels,
        embed_dim=sizes['width'],
        depth=sizes['depth'],
        num_heads=sizes['heads'],
        num_classes=kind.classes or 0,
        global_pool='avg' if 'fc_norm' in trained.params else 'token',
    )
    if trained.model_state:
        norm = torch.nn.BatchNorm1d(sizes['width'], affine=False, eps=1e-6)
        model.head = torch.nn.Sequential(norm, model.head)
    tensors: Tensors = foreign.tensors
    if not foreign.spelling.startswith('official'):
        tensors = to_theirs(trained, 'official')
    state = {n: torch.from_numpy(np.ascontiguousarray(x)) for n, x in tensors.items()}
    problems = model.load_state_dict(state, strict=False)
    counts = [name for name in problems.missing_keys if not name.endswith('num_batches_tracked')]
    if counts or problems.unexpected_keys:
        raise UserError(f'timm does not know this model: {counts + problems.unexpected_keys}.')
    model.eval()
    return (model(images) if kind.classes else model.forward_features(images)).numpy()
