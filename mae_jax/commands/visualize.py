"""Draws what a model makes of images: reconstructions, attention, principal components.

mae-jax visualize runs/folder photo.jpg other.png --out=grid.png
mae-jax visualize runs/folder *.jpg --mask_ratio .5 .75 .9 --out=ratios.png
mae-jax visualize runs/folder *.jpg --show=attention --out=attention.png
"""

import argparse
from collections.abc import Mapping

import numpy as np
from PIL import Image

import mae_jax
from mae_jax.build_task import image_size, statistics
from mae_jax.errors import UserError
from mae_jax.find_checkpoint import absolute
from mae_jax.interop.tensor_files import replacing
from mae_jax.interop.trained import read_config
from mae_jax.models.mae import MAE
from mae_jax.patches import grid_size
from mae_jax.pictures import grid, to_pixels
from mae_jax.tasks.preprocess import normalize
from mae_jax.visualize import (
    Columns,
    attention_columns,
    mask_noise,
    pca_columns,
    read_images,
    sweep_columns,
)

SUFFIXES = ('.png', '.jpg', '.jpeg')
FEATURES = {'attention': attention_columns, 'pca': pca_columns}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('checkpoint', help='work directory, one of its checkpoints, or a converted file')
    add('images', nargs='*', help='image files, one row each')
    add(
        '--show',
        choices=('reconstruction', *FEATURES),
        default='reconstruction',
        help='(default: %(default)s)',
    )
    add('--out', default='grid.png', help='PNG or JPEG to write (default: %(default)s)')
    add('--overwrite', action='store_true', help='write over a file that is there')
    masks = parser.add_argument_group('reconstruction')
    add = masks.add_argument
    add(
        '--mask_ratio',
        type=float,
        nargs='+',
        help="share to hide; several are shown side by side, nested (default: the model's own)",
    )
    add('--strategy', help="how masks are drawn (default: the model's own)")
    add('--seed', type=int, default=0, help='of the masks (default: %(default)s)')
    features = parser.add_argument_group('attention and pca')
    features.add_argument(
        '--block', type=int, default=-1, help='0 the first, -1 the last (default: %(default)s)'
    )


def run(args: argparse.Namespace) -> None:
    """Writes the picture and says where.

    Raises:
      UserError: a checkpoint, an image or an argument that does not work.
    """
    check_out(args.out, args.overwrite)
    config = read_config(args.checkpoint)
    data = config.dataset
    pixels = read_images(
        args.images,
        image_size=image_size(config),
        channels=data.channels,
        apply_exif=data.get('apply_exif', False),
        crop_share=data.get('eval_crop_share'),
    )
    images = np.asarray(normalize(pixels, **statistics(config)))
    undo = dict(mean=data.mean, std=data.std)
    if args.show == 'reconstruction':
        columns = reconstructions(args, images, undo)
    else:
        encoder, params = mae_jax.load_encoder(args.checkpoint)
        seen = FEATURES[args.show](encoder, params, images, args.block)
        columns = {'original': to_pixels(images, **undo)} | seen
    with replacing(args.out) as fresh:
        Image.fromarray(grid(columns)).save(fresh, quality=95)
    print(f'{args.show} of {len(images)} image(s): {args.out}')


def check_out(out: str, overwrite: bool) -> None:
    """Refuses, before anything is computed, a file that could not be written in the end."""
    path = absolute(out)
    if path.is_dir():
        raise UserError(f'--out={out} is a directory: choose another name.')
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f'--out={out} must end in {", ".join(SUFFIXES)}.')
    if path.exists() and not overwrite:
        raise UserError(f'--out={out} exists and is kept: choose another name, or add --overwrite.')


def reconstructions(args: argparse.Namespace, images: np.ndarray, undo: Mapping) -> Columns:
    """Under the masks that the arguments ask for, and else those the model was trained with."""
    model, params = mae_jax.load(args.checkpoint)
    if not isinstance(model, MAE):
        raise UserError(
            f'{args.checkpoint} is a classifier and has no decoder: name the pretraining run it '
            'came from, or look at its encoder with --show=attention or --show=pca.'
        )
    rows, columns = grid_size(images.shape[1:3], model.patch_size)
    strategy = args.strategy or model.mask_strategy
    noise = mask_noise(args.seed, len(images), rows * columns, strategy)
    ratios = args.mask_ratio or [model.mask_ratio]
    return sweep_columns(model, params, images, noise, ratios, **undo)
