"""Gives KAIST's MaskedAutoencoder-Jax (Flax, Apache 2.0) to tpu_estimate.py.

    git clone https://github.com/KAIST-AILab/MaskedAutoencoder-Jax
    python benchmarks/tpu_estimate.py \\
        --peer=KAIST=benchmarks/peers/kaist.py:pretrain@MaskedAutoencoder-Jax/src

Its model and its AdamW as they are there, with the sizes of the config it is compared with; `pmap`
is replaced by `jit` over the mesh. Needs flax, optax and chex. Its modules for data (webdataset,
timm, torchvision) are not needed here, and are replaced by empty ones where they are not installed.
"""

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import make_architecture

SCOPES = {
    'model': 'encoder',
    'decoder_model|decoder_proj|decoder_image_output': 'decoder',
    'attn': 'attention',
    'w[qkv]': 'qkv',
    'wo': 'proj',
    'ff': 'mlp',
    'dec_norm': 'norm',
}
"""Its names of modules -> ours."""


def pretrain(config: ConfigDict) -> tuple[Any, Any, Any]:
    """Returns its step, abstract state and batch for a config of pretraining."""
    if config.task != 'pretrain':
        raise NotImplementedError('This peer is its pretraining.')
    _replace_missing_modules()
    import optax
    from flax.training.train_state import TrainState
    from modeling import MAEDecoder, ViT
    from pretraining import PretrainModule

    sizes = make_architecture(config.model)
    patch = {'patch_size': sizes['patch_size'], 'image_size': config.image_size[0]}
    encoder = ViT(
        layers=sizes['depth'], dim=sizes['width'], heads=sizes['heads'], labels=0,
        posemb='sincos2d', pooling='cls', image_mask_ratio=config.mask.ratio, **patch,
    )  # fmt: skip
    decoder = MAEDecoder(
        dec_layers=config.model.decoder_depth, dec_dim=config.model.decoder_width,
        dec_heads=config.model.decoder_heads, dec_posemb='sincos2d', **patch,
    )  # fmt: skip
    module = PretrainModule(encoder, decoder, patch['image_size'], norm_pix_loss=True)
    images = jax.ShapeDtypeStruct((config.batch_size, 3, *config.image_size), jnp.uint8)

    def loss_of(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        rngs = {'noise': key, 'dropout': key}
        return module.apply({'params': params}, images, det=False, rngs=rngs)['loss'].mean()

    def is_decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)

    def create() -> tuple[TrainState, jax.Array]:
        key = jax.random.PRNGKey(0)
        example = jnp.zeros((1, *images.shape[1:]), jnp.uint8)
        params = module.init({'params': key, 'noise': key, 'dropout': key}, example)['params']
        optimizer = optax.adamw(1.5e-4, b1=0.9, b2=0.95, weight_decay=0.05, mask=is_decayed)
        return TrainState.create(apply_fn=module.apply, params=params, tx=optimizer), key

    def step(carry: tuple[TrainState, jax.Array], images: jax.Array) -> tuple[Any, jax.Array]:
        state, key = carry
        key, of_step = jax.random.split(key)
        loss, gradients = jax.value_and_grad(loss_of)(state.params, images, of_step)
        with jax.named_scope('optimizer'):
            state = state.apply_gradients(grads=gradients)
        return (state, key), loss

    return step, jax.eval_shape(create), images


def _replace_missing_modules() -> None:
    missing = [name for name in ('webdataset', 'timm', 'torchvision') if not find_spec(name)]
    if 'webdataset' in missing:
        sys.modules['webdataset'] = ModuleType('webdataset')
    if missing:
        dataset = sys.modules['dataset'] = ModuleType('dataset')
        dataset.IMAGENET_DEFAULT_MEAN = np.array([0.485, 0.456, 0.406])
        dataset.IMAGENET_DEFAULT_STD = np.array([0.229, 0.224, 0.225])
