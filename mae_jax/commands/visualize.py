"""Draws what a model makes of images: reconstructions, attention, principal components.

mae-jax visualize runs/folder photo.jpg other.png --out=grid.png
mae-jax visualize runs/folder *.jpg --mask_ratio .5 .75 .9 --out=ratios.png
mae-jax visualize runs/folder *.jpg --show=attention --out=attention.png
"""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
from mae_jax.interop.tensor_files import replacing
from mae_jax.interop.trained import read_config
from PIL import Image

import mae_jax
from mae_jax.build_task import image_size
from mae_jax.errors import UserError
from mae_jax.find_checkpoint import absolute
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('checkpoint', help='work directory, one of its checkpoints, or a converted file')
    add('images', nargs='*', help='image files, one row each')
    add('--show', choices=SHOWS, default='reconstruction', help='(default: %(default)s)')
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
    images = np.asarray(normalize(pixels, scale=data.scale, mean=data.mean, std=data.std))
    columns = SHOWS[args.show](args, images, dict(mean=data.mean, std=data.std))
    with replacing(args.out) as fresh:
        Image.fromarray(grid(columns)).save(fresh, quality=95)
    print(f'{args.show} of {len(images)} image(s): {args.out}')


def check_out(out: str, overwrite: bool) -> None:
    """Refuses, before anything is computed, a file that could not be written in the end."""
    path = absolute(out)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f'--out={out} must end in {", ".join(SUFFIXES)}.')
    if path.is_dir() or (path.exists() and not overwrite):
        remedy = '' if path.is_dir() else ' or pass --overwrite,'
        raise UserError(f'--out={out} exists and is kept:{remedy} choose another name.')


def reconstruction(args: argparse.Namespace, images: np.ndarray, statistics: Mapping) -> Columns:
    model, params = mae_jax.load(args.checkpoint)
    if not isinstance(model, MAE):
        raise UserError(
            f'{args.checkpoint} has no decoder, and reconstructions need one: take the pretraining '
            'run it came from, or look at the encoder with --show=attention or --show=pca.'
        )
    rows, columns = grid_size(images.shape[1:3], model.patch_size)
    strategy = args.strategy or model.mask_strategy
    noise = mask_noise(args.seed, len(images), rows * columns, strategy)
    ratios = args.mask_ratio or [model.mask_ratio]
    return sweep_columns(model, params, images, noise, ratios, **statistics)


def attention(args: argparse.Namespace, images: np.ndarray, statistics: Mapping) -> Columns:
    return _beside_original(attention_columns, args, images, statistics)


def pca(args: argparse.Namespace, images: np.ndarray, statistics: Mapping) -> Columns:
    return _beside_original(pca_columns, args, images, statistics)


def _beside_original(columns: Any, args, images: np.ndarray, statistics: Mapping) -> Columns:
    encoder, params = mae_jax.load_encoder(args.checkpoint)
    found = columns(encoder, params, images, args.block)
    return {'original': to_pixels(images, **statistics)} | found


SHOWS = {'reconstruction': reconstruction, 'attention': attention, 'pca': pca}
