"""Pretrains one row of the paper's ablations: Table 1, Figures 5 and 7 of arXiv 2111.06377.

    python main.py --config=configs/ablations.py:decoder_depth_1

A row applies its `changes` to a common base (ViT-L/16, 800 epochs, unnormalised pixels, an 8-block
decoder of width 512, 75 % hidden at random, random resized crop). Two rows go beyond the paper's
tables. `mae-jax ablate` trains a list of rows (configs/ablation_suite.py), and probes and
fine-tunes each with the recipes in `FROM_PRETRAINED`.

Six rows, one in each subtable of Table 1, equal the base. Where the paper gives no value, these
configs use 16 heads for decoders of every width, and colour jitter of 0.4 (brightness, contrast,
saturation) and 0.1 (hue). The row target_dvae needs a file written by scripts/convert_dvae.py:
--config.target.tokenizer=dvae.safetensors, or in a suite --config.target_dvae.target.tokenizer=....
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mae_jax.configs import finetune, linprobe, vit_large


class Row(NamedTuple):
    """The fields that a row changes in the base, and the paper's results for it."""

    table: str
    """A key of TABLES."""
    label: str
    """The row's name in the paper."""
    changes: Mapping[str, Any]
    """Field -> value."""
    finetune: float | None = None
    """The paper's top-1 in percent; None if it prints no number (its figures are plots)."""
    linprobe: float | None = None


TABLES = {
    '1a': 'Decoder depth',
    '1b': 'Decoder width',
    '1c': 'Mask token',
    '1d': 'Reconstruction target',
    '1e': 'Data augmentation',
    '1f': 'Mask sampling',
    'Figure 5': 'Mask ratio',
    'Figure 7': 'Training schedule',
    '': 'Beyond the paper',
}

BASE = {
    'num_epochs': 800.0,
    'target.name': 'pixel',
    'model.decoder_depth': 8,
    'model.decoder_width': 512,
    'mask.strategy': 'random',
    'mask.ratio': 0.75,
}
"""Only the target differs from configs/vit_large.py; the other fields are repeated for clarity."""

FROM_PRETRAINED = {'linprobe': linprobe.paper, 'finetune': finetune.paper}
"""The recipes of configs/linprobe_large.py and finetune_large.py, with the model of `init_from`."""


def _depth(blocks: int, *top1: float) -> Row:
    label = '1 block' if blocks == 1 else f'{blocks} blocks'
    return Row('1a', label, {'model.decoder_depth': blocks}, *top1)


def _width(width: int, *top1: float) -> Row:
    return Row('1b', f'{width}-d', {'model.decoder_width': width}, *top1)


def _mask(strategy: str, percent: int, *top1: float) -> Row:
    changes = {'mask.strategy': strategy, 'mask.ratio': percent / 100}
    return Row('1f', f'{strategy} {percent} %', changes, *top1)


ROWS: dict[str, Row] = {
    'decoder_depth_1': _depth(1, 84.8, 65.5),
    'decoder_depth_2': _depth(2, 84.9, 70.0),
    'decoder_depth_4': _depth(4, 84.9, 71.9),
    'decoder_depth_8': _depth(8, 84.9, 73.5),
    'decoder_depth_12': _depth(12, 84.4, 73.3),
    'decoder_width_128': _width(128, 84.9, 69.1),
    'decoder_width_256': _width(256, 84.8, 71.3),
    'decoder_width_512': _width(512, 84.9, 73.5),
    'decoder_width_768': _width(768, 84.4, 73.1),
    'decoder_width_1024': _width(1024, 84.3, 73.1),
    'encoder_with_mask_tokens': Row(
        '1c', 'encoder w/ [M]', {'model.encoder_mask_tokens': True}, 84.2, 59.6
    ),
    'encoder_without_mask_tokens': Row(
        '1c', 'encoder w/o [M]', {'model.encoder_mask_tokens': False}, 84.9, 73.5
    ),
    'target_pixel': Row('1d', 'pixel (w/o norm)', {'target.name': 'pixel'}, 84.9, 73.5),
    'target_normalized_pixel': Row(
        '1d', 'pixel (w/ norm)', {'target.name': 'normalized_pixel'}, 85.4, 73.9
    ),
    'target_pca': Row('1d', 'PCA', {'target.name': 'pca'}, 84.6, 72.3),
    'target_dvae': Row('1d', 'dVAE token', {'target.name': 'token'}, 85.3, 71.6),
    'augment_none': Row(
        '1e', 'none', {'dataset.crop': 'center', 'dataset.flip': False}, 84.0, 65.7
    ),
    'augment_fixed_crop': Row('1e', 'crop, fixed size', {'dataset.crop': 'fixed'}, 84.7, 73.1),
    'augment_random_crop': Row('1e', 'crop, rand size', {'dataset.crop': 'retry'}, 84.9, 73.5),
    'augment_color_jitter': Row(
        '1e', 'crop + color jit', {'dataset.augment': 'jitter-b0.4-c0.4-s0.4-h0.1'}, 84.3, 71.9
    ),
    'mask_random_75': _mask('random', 75, 84.9, 73.5),
    'mask_block_50': _mask('block', 50, 83.9, 72.3),
    'mask_block_75': _mask('block', 75, 82.8, 63.9),
    'mask_grid_75': _mask('grid', 75, 84.0, 66.0),
    **{
        f'mask_ratio_{percent}': Row('Figure 5', f'{percent} %', {'mask.ratio': percent / 100})
        for percent in (10, 20, 30, 40, 50, 60, 70, 75, 80, 90)
    },
    **{
        f'epochs_{epochs}': Row('Figure 7', f'{epochs} epochs', {'num_epochs': float(epochs)})
        for epochs in (100, 200, 400, 800, 1600)
    },
    'decoder_depth_0': Row('', 'a linear layer as decoder', {'model.decoder_depth': 0}),
    # The paper gives no figure: "a slight decrease in accuracy (e.g., ~0.5%)" (footnote 1).
    'loss_all': Row('', 'loss on all patches', {'target.loss_on': 'all'}),
}


def get_config(row: str = 'target_pixel'):
    if row not in ROWS:
        raise ValueError(f'ablations.py:{row} is unknown: choose {", ".join(ROWS)}.')
    config = vit_large.get_config()
    config.update_from_flattened_dict({**BASE, **ROWS[row].changes})
    return config
