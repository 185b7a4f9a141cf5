"""The models whose weights are converted, as their own libraries have them; for the tests and
`make_keys.py`. Needs torch and timm 1, and transformers 5 for names with `huggingface`.

timm's VisionTransformer has the names and the arithmetic of the official MAE encoders, DeiT,
MoCo v3 and DINO. What no library has is built here from public facts, each named where it is used.
"""

import re
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Size(NamedTuple):
    """A model's numbers; the decoder's are the same for every official model."""

    width: int
    depth: int
    heads: int
    patch_size: int = 16
    image_size: int = 224
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    labels: int = 1000

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


SIZES = {
    'small': Size(384, 12, 6),
    'base': Size(768, 12, 12),
    'large': Size(1024, 24, 16),
    'huge': Size(1280, 32, 16, patch_size=14),
}
# Quick, and with the widths of ViT-Tiny, so that the number of heads differs from the width.
TINY = Size(192, 2, 3, patch_size=8, image_size=32, decoder_width=64, decoder_depth=2, labels=10)


def vision_transformer(size: Size, labels: int = 0, **options) -> VisionTransformer:
    """timm's, by default without a head. `global_pool='avg'` is the official classifier with mean
    pooling: no `norm`, but `fc_norm` after the mean."""
    return VisionTransformer(num_classes=labels, **_timm_numbers(size), **options)


def _timm_numbers(size: Size) -> dict:
    return {
        'img_size': size.image_size,
        'patch_size': size.patch_size,
        'embed_dim': size.width,
        'depth': size.depth,
        'num_heads': size.heads,
        'norm_layer': LayerNorm,
        'weight_init': 'skip',
    }


class Autoencoder(VisionTransformer):
    """Encoder and decoder under the names of the official `*_full.pth`.

    The names are those that transformers' convert_vit_mae_to_pytorch.py renames: mask_token,
    decoder_pos_embed, decoder_embed, decoder_blocks, decoder_norm, decoder_pred, and timm's.
    """

    def __init__(self, size: Size):
        super().__init__(num_classes=0, **_timm_numbers(size))
        width = size.decoder_width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + size.patches, width))
        self.decoder_embed = nn.Linear(size.width, width)
        self.decoder_blocks = nn.Sequential(
            *(
                Block(width, size.decoder_heads, qkv_bias=True, norm_layer=LayerNorm)
                for _ in range(size.decoder_depth)
            )
        )
        self.decoder_norm = LayerNorm(width)
        self.decoder_pred = nn.Linear(width, 3 * size.patch_size**2)

    def forward(self, images, noise, mask_ratio=0.75):
        """Images [B,3,H,W], noise [B,N] -> latent of what is seen [B,1+K,D], prediction [B,N,PP3],
        mask bool [B,N], True = hidden (the paper, section 3)."""
        patches = self.patch_embed(images) + self.pos_embed[:, 1:]
        batch, count, _ = patches.shape
        rows = torch.arange(batch)[:, None]
        seen = noise.argsort(dim=1)[:, : int(count * (1 - mask_ratio))]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        latent = self.norm(self.blocks(torch.cat([first, patches[rows, seen]], dim=1)))
        mask = torch.ones(batch, count, dtype=torch.bool)
        mask[rows, seen] = False
        embedded = self.decoder_embed(latent)
        filled = self.mask_token.repeat(batch, count, 1)
        filled[rows, seen] = embedded[:, 1:]
        tokens = torch.cat([embedded[:, :1], filled], dim=1) + self.decoder_pos_embed
        tokens = self.decoder_norm(self.decoder_blocks(tokens))
        return latent, self.decoder_pred(tokens)[:, 1:], mask


def linear_probe(size: Size) -> VisionTransformer:
    """The official linear probe: cls token, a BatchNorm without affine parameters (eps 1e-6, MAE's
    appendix A.1) and a linear layer, as one Sequential named head."""
    model = vision_transformer(size, size.labels)
    norm = nn.BatchNorm1d(size.width, affine=False, eps=1e-6)
    model.head = nn.Sequential(norm, model.head)
    return model


def moco_v3(size: Size, dim: int = 256, hidden: int = 4096) -> nn.Module:
    """Both encoders and the predictor of MoCo v3, as DistributedDataParallel names them.

    facebookresearch/moco-v3: moco/builder.py (`_build_mlp`: three layers for the projector, which
    is the encoder's head, two for the predictor; no biases; a last BatchNorm without affine).
    """

    def encoder():
        model = vision_transformer(size)
        model.head = _moco_mlp([size.width, hidden, hidden, dim])
        return model

    parts = {
        'base_encoder': encoder(),
        'momentum_encoder': encoder(),
        'predictor': _moco_mlp([dim, hidden, dim]),
    }
    return nn.ModuleDict({'module': nn.ModuleDict(parts)})


def _moco_mlp(widths: list[int]) -> nn.Sequential:
    layers = []
    for fan_in, fan_out in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU()]
    last = nn.Linear(widths[-2], widths[-1], bias=False)
    return nn.Sequential(*layers, last, nn.BatchNorm1d(widths[-1], affine=False))


def dino(size: Size, outputs: int = 65536, hidden: int = 2048) -> nn.ModuleDict:
    """Backbone and head of DINO, as the teacher names them; the student, which is inside a
    DistributedDataParallel, puts `module.` before.

    facebookresearch/dino: vision_transformer.py (`DINOHead`: three layers to a bottleneck of 256,
    then a weight-normalised layer) and utils.py (`MultiCropWrapper`: backbone, head).
    """
    mlp = nn.Sequential(
        nn.Linear(size.width, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, 256),
    )
    # As the old torch.nn.utils.weight_norm names them.
    last = nn.ParameterDict(
        {'weight_g': torch.zeros(outputs, 1), 'weight_v': torch.zeros(outputs, 256)}
    )
    head = nn.ModuleDict({'mlp': mlp, 'last_layer': last})
    return nn.ModuleDict({'backbone': vision_transformer(size), 'head': head})


def beit(size: Size, shared: bool = False):
    """timm's Beit, which has the names of BEiT's own code: as fine-tuned, with a table in each
    block and mean pooling, or as pretrained, with one table for all (`shared`) and no head."""
    from timm.models import Beit

    numbers = {n: x for n, x in _timm_numbers(size).items() if n != 'weight_init'}
    return Beit(
        **numbers,
        num_classes=0 if shared else size.labels,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
        use_fc_norm=not shared,
    )


def beit_buffers(size: Size, shared: bool) -> dict[str, torch.Tensor]:
    """What the files of BEiT hold beside timm's tensors (microsoft/unilm, beit/modeling_*.py): the
    index of the tables; in pretraining a mask token, and a head for the codes of dVAE."""
    index = torch.zeros(size.patches + 1, size.patches + 1, dtype=torch.int64)
    if not shared:
        return {f'blocks.{i}.attn.relative_position_index': index for i in range(size.depth)}
    return {
        'mask_token': torch.zeros(1, 1, size.width),
        'rel_pos_bias.relative_position_index': index,
        'lm_head.weight': torch.zeros(8192, size.width),
        'lm_head.bias': torch.zeros(8192),
    }


def huggingface_beit(size: Size, kind: str = 'classifier'):
    """BeitForImageClassification ('classifier'), BeitForMaskedImageModeling ('pretrained'), or
    BeitModel ('encoder')."""
    import transformers

    config = transformers.BeitConfig(
        **_huggingface_numbers(size),
        use_relative_position_bias=kind == 'classifier',
        use_shared_relative_position_bias=kind != 'classifier',
        use_mask_token=kind == 'pretrained',
        use_mean_pooling=kind != 'encoder',
    )
    if kind == 'classifier':
        config.num_labels = size.labels
        return transformers.BeitForImageClassification(config)
    if kind == 'pretrained':
        return transformers.BeitForMaskedImageModeling(config)
    return transformers.BeitModel(config, add_pooling_layer=False)


def huggingface_mae(size: Size, normalized: bool = True):
    """ViTMAEForPreTraining. LayerNorm's eps is 1e-6 here, as the official model's; transformers'
    default, and what the hub's configurations say, is 1e-12."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        **_huggingface_numbers(size),
        decoder_hidden_size=size.decoder_width,
        decoder_num_hidden_layers=size.decoder_depth,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=4 * size.decoder_width,
        norm_pix_loss=normalized,
    )
    return ViTMAEForPreTraining(config)


def huggingface_vit(size: Size, kind: str = 'classifier'):
    """ViTForImageClassification ('classifier'), or ViTModel ('encoder', 'pooler')."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(**_huggingface_numbers(size))
    if kind == 'classifier':
        config.num_labels = size.labels
        return ViTForImageClassification(config)
    return ViTModel(config, add_pooling_layer=kind == 'pooler')


def _huggingface_numbers(size: Size) -> dict:
    return {
        'hidden_size': size.width,
        'num_hidden_layers': size.depth,
        'num_attention_heads': size.heads,
        'intermediate_size': 4 * size.width,
        'image_size': size.image_size,
        'patch_size': size.patch_size,
        'layer_norm_eps': 1e-6,
    }


# transformers 5 reads a name by putting the right-hand sides of its conversion_mapping.py
# ('ViTMAEForPreTraining', 'ViTModel') for the left; these are the ways back.
_FOUR = [
    (  # of BEiT, as the next
        r'(layers\.\d+)\.relative_position_bias\.',
        r'\1.attention.attention.relative_position_bias.',
    ),
    (r'shared_position_bias\.', 'encoder.relative_position_bias.'),
    (r'(?<!decoder_)layers\.', 'encoder.layer.'),
    (r'\.q_proj\.', '.attention.query.'),
    (r'\.k_proj\.', '.attention.key.'),
    (r'\.v_proj\.', '.attention.value.'),
    (r'\.o_proj\.', '.output.dense.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'),
    (r'\.mlp\.fc2\.', '.output.dense.'),
]
SPELLINGS = {
    'module': [],  # the names inside transformers 5
    'hub': _FOUR,  # transformers 4's and so the hub's
    # What save_pretrained of transformers 5 writes: its inverse renaming of `layers.` hits
    # `decoder_layers.` too.
    'saved': [(r'decoder_layers\.', 'decoder_encoder.layer.'), *_FOUR],
}


def respell(names: dict, spelling: str) -> dict:
    """A state dict of a transformers 5 module under the names of a spelling."""

    def rename(name):
        for pattern, replacement in SPELLINGS[spelling]:
            name = re.sub(pattern, replacement, name)
        return name

    return {rename(name): value for name, value in names.items()}


def to_augreg(state: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """timm's classifier with a cls token, as vision_transformer's .npz has it.

    google-research/vision_transformer, vit_jax/models_vit.py: Flax numbers a block's unnamed
    modules by their order, and DenseGeneral keeps the heads apart.
    """
    parts = ('LayerNorm_0', 'MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')
    arrays = _to_flax(state, heads, parts)
    arrays['Transformer/posembed_input/pos_embedding'] = state['pos_embed']
    return arrays


def to_big_vision(state: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """timm's classifier with `no_embed_class=True` as big_vision's .npz has it.

    google-research/big_vision, models/vit.py (pool_type='tok'): a block's modules are numbered by
    kind, and positions are added before the cls token is put in front, so it has none.
    """
    parts = ('LayerNorm_0', 'MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')
    arrays = _to_flax(state, heads, parts) | {'pos_embedding': state['pos_embed']}
    return {f'params/{name}': array for name, array in arrays.items()}


def _to_flax(state, heads: int, parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    arrays = {'cls': state['cls_token']}
    width = state['cls_token'].shape[-1]

    def dense(theirs, ours):
        arrays[f'{theirs}/kernel'] = state[f'{ours}.weight'].T
        arrays[f'{theirs}/bias'] = state[f'{ours}.bias']

    def norm(theirs, ours):
        arrays[f'{theirs}/scale'] = state[f'{ours}.weight']
        arrays[f'{theirs}/bias'] = state[f'{ours}.bias']

    arrays['embedding/kernel'] = state['patch_embed.proj.weight'].transpose(2, 3, 1, 0)
    arrays['embedding/bias'] = state['patch_embed.proj.bias']
    norm('Transformer/encoder_norm', 'norm')
    if 'head.weight' in state:
        dense('head', 'head')
    depth = sum(name.endswith('.norm1.bias') for name in state)
    for i in range(depth):
        ours, theirs = f'blocks.{i}', f'Transformer/encoderblock_{i}'
        norm1, attention, norm2, mlp = (f'{theirs}/{part}' for part in parts)
        norm(norm1, f'{ours}.norm1')
        norm(norm2, f'{ours}.norm2')
        dense(f'{mlp}/Dense_0', f'{ours}.mlp.fc1')
        dense(f'{mlp}/Dense_1', f'{ours}.mlp.fc2')
        weights = state[f'{ours}.attn.qkv.weight'].reshape(3, heads, -1, width)
        biases = state[f'{ours}.attn.qkv.bias'].reshape(3, heads, -1)
        for name, weight, bias in zip(('query', 'key', 'value'), weights, biases, strict=True):
            arrays[f'{attention}/{name}/kernel'] = weight.transpose(2, 0, 1)
            arrays[f'{attention}/{name}/bias'] = bias
        out = state[f'{ours}.attn.proj.weight'].T.reshape(heads, -1, width)
        arrays[f'{attention}/out/kernel'] = out
        arrays[f'{attention}/out/bias'] = state[f'{ours}.attn.proj.bias']
    return arrays
