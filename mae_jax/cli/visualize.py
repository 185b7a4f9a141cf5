"""Draws reconstructions, attention or features of a trained model, a row for each image.

    mae-jax visualize runs/folder a.jpg b.jpg                                  reconstructions
    mae-jax visualize runs/folder *.jpg --mask_ratio .5 .75 .9 --out=ratios.png
    mae-jax visualize runs/folder a.jpg b.jpg --mask a.png b.png               inpainting
    mae-jax visualize runs/folder *.jpg --masks 4 --out=errors.png             every patch predicted
    mae-jax visualize runs/folder *.jpg --show=attention --out=attention.png
    mae-jax visualize runs/folder *.jpg --show=pca --out=pca.png
    mae-jax visualize runs/segment *.jpg --show=segmentation --out=classes.png
    mae-jax visualize runs/detect *.jpg --show=detection --out=objects.png

Reconstructions need a checkpoint with decoder; attention of the cls token and the principal
components of patch features need only an encoder. Segmentations need a run of configs/segment.py;
beside an image in images/ whose mask is in annotations/ the truth is drawn. Detections, boxes and
masks with names and scores of at least 0.5, need a run of configs/detect.py.

Of a --mask, what is not transparent hides the image, in pictures that have transparent pixels; in
others what is not black. It has the size of its image, and patches are hidden as a whole. --masks 4
divides the patches of an image at random into four groups, predicts each from the other three, and
adds a map of the error of every pixel.
"""

import argparse

from mae_jax.cli.arguments import Parser
from mae_jax.errors import UserError, counted

MASKING = ('mask_ratio', 'mask', 'masks', 'strategy', 'seed', 'raw')
"""Options of reconstructions."""
ALONE = {
    'mask': ('mask_ratio', 'masks', 'strategy', 'seed'),
    'masks': ('mask_ratio', 'mask', 'strategy', 'raw'),
}
"""Option -> those that have no effect beside it."""


def add_arguments(parser: Parser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='a run, one of its checkpoints, a converted file'
    )
    parser.add_argument('images', metavar='IMAGE', nargs='+', help='image files')
    parser.add_argument(
        '--show',
        choices=('reconstruction', 'attention', 'pca', 'segmentation', 'detection'),
        default='reconstruction',
        help='unset: reconstruction',
    )
    parser.add_argument('--out', default='grid.png', help='PNG or JPEG; unset: grid.png')
    parser.add_argument('--abreast', type=int, default=1, help='images in a row; unset: 1')
    parser.add_argument('--overwrite', action='store_true', help='replace --out where it exists')
    masks = parser.add_argument_group('reconstruction')
    masks.add_argument(
        '--mask_ratio', type=float, nargs='+', help="share to hide, or several; unset: the model's"
    )
    masks.add_argument(
        '--mask', nargs='+', metavar='FILE', help='painted over what to hide: one for all, or each'
    )
    masks.add_argument(
        '--masks', type=int, metavar='N', help='complementary masks, each hides 1/N of an image'
    )
    masks.add_argument('--strategy', help="how masks are drawn; unset: the model's")
    masks.add_argument('--seed', type=int, help='of the masks; unset: 0')
    masks.add_argument(
        '--raw',
        action='store_true',
        default=None,
        help='add the prediction for all patches: that for visible ones is not trained',
    )
    features = parser.add_argument_group('attention and pca')
    features.add_argument('--block', type=int, help='0 the first, -1 the last; unset: the last')


def run(arguments: argparse.Namespace) -> None:
    """Draws one picture.

    Raises:
      UserError: an option has no effect on what is shown, or a file cannot be read or written.
    """
    from mae_jax.inference.visualize import visualize

    without_effect = {f'--show={arguments.show}': MASKING}
    if arguments.show in ('segmentation', 'detection'):
        without_effect = {f'--show={arguments.show}': (*MASKING, 'block')}
    if arguments.show == 'reconstruction':
        given = {name: others for name, others in ALONE.items() if getattr(arguments, name)}
        without_effect = {'--show=reconstruction': ('block',)}
        without_effect |= {f'--{name}': others for name, others in given.items()}
    for chosen, names in without_effect.items():
        for name in names:
            if getattr(arguments, name) is not None:
                raise UserError(f'--{name} has no effect with {chosen}: leave it out.')
    visualize(
        arguments.checkpoint,
        arguments.images,
        arguments.out,
        show=arguments.show,
        mask_ratios=arguments.mask_ratio or (),
        strategy=arguments.strategy,
        seed=arguments.seed or 0,
        raw=bool(arguments.raw),
        painted=arguments.mask or (),
        masks=arguments.masks,
        block=-1 if arguments.block is None else arguments.block,
        abreast=arguments.abreast,
        overwrite=arguments.overwrite,
    )
    print(f'{arguments.show} of {counted(len(arguments.images), "image")}: {arguments.out}')
