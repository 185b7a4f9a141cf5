"""Compares the outputs of a model of ours with those of another library, if it is installed."""

import functools
import importlib
import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mae_jax.config.model import encoder_options, image_size, make_architecture, norm_eps
from mae_jax.errors import UserError
from mae_jax.files.tensors import Tensors
from mae_jax.interop import huggingface
from mae_jax.interop.beit_names import SHARED
from mae_jax.interop.foreign import Foreign
from mae_jax.interop.modules import Kind, kind_of, make_module
from mae_jax.interop.trained import Trained, flat
from mae_jax.interop.translate import to_theirs

BATCH = 2
TOLERANCE = 3e-5
"""Largest allowed difference of outputs, relative to the largest output."""


def compare_outputs(foreign: Foreign, trained: Trained, given: Collection[str] = ()) -> str:
    """Runs both models on random images; returns how much they differ, or why they were not run.

    transformers runs autoencoders and the models of Hugging Face, timm runs the others. Tensors
    with the names of a third library are converted through ours.

    The other library computes what the files of the source say, not what was understood of them:
    transformers receives the source's own tensors, and those fields of its config.json that change
    an output without changing a shape. It never receives the file itself, which can make it
    download and run code.

    Args:
      foreign: the checkpoint that was read.
      trained: the same weights as a model of ours.
      given: names of the hyperparameters that the user overrides, which are taken from `trained`.

    Raises:
      UserError: the outputs differ by more than `TOLERANCE`.
    """
    kind, (height, width) = kind_of(flat(trained)), image_size(trained.config)
    by_transformers = kind.name == 'mae' or foreign.naming.startswith('huggingface')
    library = 'transformers' if by_transformers else 'timm'
    try:
        import torch

        version = importlib.import_module(library).__version__
    except ImportError:
        return f'not compared with {library}, which is not installed'
    if kind.name == 'mae' and height != width:
        return 'not compared with transformers, whose ViTMAE takes only squares'
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, height, width, trained.config.dataset.channels))
    images = images.astype(np.float32)
    patches = (height * width) // make_architecture(trained.config.model)['patch_size'] ** 2
    noise = rng.random((BATCH, patches), np.float32)
    with torch.no_grad():
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2))
        if by_transformers:
            noise_tensor = torch.from_numpy(noise)
            theirs = _run_transformers(foreign, trained, kind, given, inputs, noise_tensor)
        else:
            official = foreign.naming.startswith(('official', 'beit'))
            tensors = foreign.tensors if official else to_theirs(trained, 'official')
            theirs = _run_timm(tensors, trained, kind, inputs)
    largest = np.abs(theirs).max()
    difference = np.abs(run_ours(trained, images, noise) - theirs).max()
    if not difference <= TOLERANCE * largest:
        raise UserError(
            f'The outputs of the model differ from those of {library} {version} by up to '
            f'{difference:.2g}, where the largest is {largest:.2g}.'
        )
    return (
        f'compared with {library} {version}: the largest difference of an output is '
        f'{difference:.1e} ({largest:.1f} is the largest output)'
    )


def run_ours(trained: Trained, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Runs a model of ours on float32 images [B,H,W,C]; noise [B,N] draws the mask of an `MAE`.

    In full float32, on accelerators too, whose default is TF32 or passes in bfloat16.

    Returns:
      An autoencoder's prediction [B,N,P*P*C], a classifier's logits [B,classes], or an encoder's
      tokens [B,1+N,D].
    """
    kind = kind_of(flat(trained))
    module = make_module(trained.config, kind).clone(dtype=np.float32)
    params = trained.params['encoder'] if kind.name == 'encoder' else trained.params
    variables = {'params': params, **trained.model_state}
    with jax.default_matmul_precision('highest'):
        if kind.name != 'mae':
            return np.asarray(jax.jit(module.apply)(variables, images))
        return np.asarray(jax.jit(module.apply)(variables, images, noise=noise).prediction)


def _run_transformers(
    foreign: Foreign, trained: Trained, kind: Kind, given: Collection[str], images: Any, noise: Any
) -> np.ndarray:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name = huggingface.architecture_of(trained.config, kind)
    options = dict(add_pooling_layer=False) if kind.name == 'encoder' else {}
    is_theirs = foreign.naming.startswith('huggingface')
    tensors = foreign.tensors if is_theirs else to_theirs(trained, 'huggingface')
    if kind.name == 'encoder':
        tensors = {n.removeprefix('vit.').removeprefix('beit.'): x for n, x in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model'
        huggingface.write(path, tensors, trained.config, kind)
        if is_theirs and foreign.config:
            ours = huggingface.make_config(trained.config, kind, tensors=tensors)
            content = json.dumps(_as_in_source(foreign.config, ours, given))
            (path / 'config.json').write_text(content)
        opened = getattr(transformers, name).from_pretrained(path, local_files_only=True, **options)
    model = opened.float().eval()
    if kind.name == 'mae':
        return model(images, noise=noise).logits.numpy()
    outputs = model(images)
    return (outputs.logits if kind.name == 'classifier' else outputs.last_hidden_state).numpy()


def _as_in_source(
    theirs: dict[str, Any], ours: dict[str, Any], given: Collection[str]
) -> dict[str, Any]:
    """Puts the source's values into our config.json; what it lacks is left to transformers."""
    read = {field for field, name in huggingface.STATED.items() if name not in given}
    fields = (read | {'hidden_act', 'qkv_bias', 'norm_pix_loss'}) - {'image_size'}
    kept = {field: value for field, value in ours.items() if field not in fields}
    return kept | {field: theirs[field] for field in fields & theirs.keys()}


def _run_timm(tensors: Tensors, trained: Trained, kind: Kind, images: Any) -> np.ndarray:
    import torch
    from timm.models import Beit, VisionTransformer

    config, sizes = trained.config, make_architecture(trained.config.model)
    if encoder_options(config.model).relative_positions == 'beit':
        build, options = Beit, _beit_options(tensors)
    else:
        build, options = VisionTransformer, {}
    model = build(
        img_size=image_size(config),
        patch_size=sizes['patch_size'],
        in_chans=config.dataset.channels,
        embed_dim=sizes['width'],
        depth=sizes['depth'],
        num_heads=sizes['heads'],
        num_classes=kind.classes or 0,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=norm_eps(config.model)),
        global_pool='avg' if 'fc_norm' in trained.params else 'token',
        **options,
    )
    if trained.model_state:
        norm = torch.nn.BatchNorm1d(sizes['width'], affine=False, eps=1e-6)
        model.head = torch.nn.Sequential(norm, model.head)
    state = {name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}
    problems = model.load_state_dict(state, strict=False)
    missing = [name for name in problems.missing_keys if not name.endswith('num_batches_tracked')]
    if missing or problems.unexpected_keys:
        raise UserError(f'timm has no such model: {missing + problems.unexpected_keys}.')
    model.eval()
    return (model(images) if kind.classes else model.forward_features(images)).numpy()


def _beit_options(tensors: Tensors) -> dict[str, Any]:
    """Returns how timm makes the BEiT that has these tensors."""
    return {
        'init_values': 0.1 if 'blocks.0.gamma_1' in tensors else None,
        'use_abs_pos_emb': 'pos_embed' in tensors,
        'use_rel_pos_bias': SHARED['beit'] not in tensors,
        'use_shared_rel_pos_bias': SHARED['beit'] in tensors,
        'use_fc_norm': 'norm.weight' not in tensors,
    }
