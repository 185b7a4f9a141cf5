"""Converts weights between formats without changing a number.

    mae-jax convert mae_pretrain_vit_base.pth mae.safetensors    official -> ours
    mae-jax convert downloads/vit-mae-base mae.safetensors       a Hugging Face directory -> ours
    mae-jax convert hf://facebook/vit-mae-base mae.safetensors   the same, downloaded
    mae-jax convert runs/vit_base vit_base                       a run -> Hugging Face directory
    mae-jax convert runs/vit_base vit_base.safetensors           a run -> one file
    mae-jax convert runs/vit_base vit_base.pth                   a run -> official names
    mae-jax convert model_final.pkl detector.safetensors         detectron2 -> ours

Reads runs and their checkpoints, our own file, and the ViTs of the official MAE (encoder, with
decoder, fine-tuned), Hugging Face (ViTMAE, ViT, Beit), timm, DeiT, BEiT, MoCo v3, DINO,
vision_transformer and big_vision (these two with the exact GELU in place of its approximation),
and detectors of detectron2 (ViTDet with Mask R-CNN).
The result is read again and compared; where timm and transformers are installed, a batch goes
through their model and ours. The official mae_visualize_* were trained on --target pixel.

mae_jax.load, load_encoder and init_from read all of these directly too, with what they state.
"""

import argparse

from mae_jax.cli.arguments import Parser
from mae_jax.runtime.interrupts import cleaning_up


def add_arguments(parser: Parser) -> None:
    """Adds the options of the command."""
    parser.add_argument('source', metavar='SRC', help='a run, a checkpoint, a file, a directory')
    parser.add_argument('destination', metavar='DST', help='the file or directory to write')
    parser.add_argument(
        '--to',
        metavar='FORMAT',
        help='mae_jax (.safetensors) | official (.pth or .safetensors; also timm, DeiT, BEiT) | '
        'huggingface (a directory) | augreg | big_vision (.npz) | detectron2 (.pkl); unset: by the '
        'name of DST',
    )
    parser.add_argument('--encoder_only', action='store_true', help='leave decoder and head out')
    parser.add_argument('--overwrite', action='store_true', help='replace DST where it exists')
    parser.add_argument('--no_run', action='store_true', help='do not run a batch to compare')
    group = parser.add_argument_group('hyperparameters that SRC does not contain, or to override')
    group.add_argument('--heads', type=int, help='of the encoder; unset: by its width')
    group.add_argument('--decoder_heads', type=int, help='unset: 16, if it is 512 wide')
    group.add_argument('--norm_eps', type=float, help='of LayerNorm; unset: as the library has it')
    group.add_argument('--mask_ratio', type=float, help='unset: 0.75')
    group.add_argument(
        '--target', choices=('normalized_pixel', 'pixel'), help='unset: normalized_pixel'
    )
    group.add_argument('--scale', type=float, help='pixel / scale, less mean, by std; unset: 255')
    group.add_argument('--mean', type=float, nargs='+', help='of each channel; unset: ImageNet')
    group.add_argument('--std', type=float, nargs='+', help='of each channel; unset: ImageNet')
    group.add_argument(
        '--image_size', type=int, nargs=2, metavar=('H', 'W'), help='unset: a square'
    )


def run(arguments: argparse.Namespace) -> None:
    """Converts one file or directory."""
    from mae_jax.interop.convert import convert
    from mae_jax.interop.hyperparameters import FIELDS

    given = {name: getattr(arguments, name) for name in FIELDS}
    with cleaning_up():
        convert(
            arguments.source,
            arguments.destination,
            to='official' if arguments.to == 'timm' else arguments.to,
            encoder_only=arguments.encoder_only,
            overwrite=arguments.overwrite,
            run=not arguments.no_run,
            given={name: value for name, value in given.items() if value is not None},
        )
