"""Computes the features of all images below a folder by a trained encoder.

    mae-jax embed runs/folder photos features.npz
    mae-jax embed facebook-vit-mae-base photos features.npz --output cls --image_size 224
    mae-jax embed facebook-vit-mae-base photos features.npz --probe_block 8

The file holds the arrays names, features (float32, a row for each image), labels (of the folders
<class>/ or <split>/<class>/ that the images lie in, -1 without), class_names, and unreadable (names
of images that could not be read). In Python: np.load('features.npz')['features'].
"""

import argparse
import sys

from mae_jax.errors import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        'model', metavar='MODEL', help='a run, a checkpoint, a file, hf://owner/name'
    )
    parser.add_argument('folder', metavar='FOLDER', help='of images; or one image')
    parser.add_argument('out', metavar='OUT', help='the .npz file to write')
    parser.add_argument(
        '--output',
        choices=('mean', 'cls', 'tokens', 'map'),
        default='mean',
        help='mean of the patch tokens, cls token, all tokens, patch tokens by place; unset: mean',
    )
    parser.add_argument(
        '--probe_block', type=int, default=-1, help='0 the first; unset: -1, the last'
    )
    parser.add_argument(
        '--image_size', type=int, nargs='+', metavar='PIXELS', help='unset: that of training'
    )
    parser.add_argument('--batch_size', type=int, default=64, help='unset: 64')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT where it exists')


def run(arguments: argparse.Namespace) -> None:
    """Computes and writes the features; prints what could not be read.

    Raises:
      UserError: a mistake in the arguments, or a device has too little memory.
    """
    from mae_jax.inference.embed import check_out, embed, write_embedding
    from mae_jax.runtime.failures import explaining_memory

    check_out(arguments.out, arguments.overwrite)
    with explaining_memory('lower --batch_size, or use --dtype bfloat16'):
        embedding = embed(
            arguments.model,
            arguments.folder,
            output=arguments.output,
            probe_block=arguments.probe_block,
            image_size=arguments.image_size,
            batch_size=arguments.batch_size,
            dtype=arguments.dtype,
        )
    for problem in embedding.unreadable.values():
        print(f'left out: {problem}', file=sys.stderr)
    write_embedding(arguments.out, embedding)
    shape = ' x '.join(map(str, embedding.features.shape[1:]))
    classes = len(embedding.class_names)
    print(
        f'{counted(len(embedding.names), "image")}, '
        f'{counted(classes, "class") if classes else "no labels"}, '
        f'{len(embedding.unreadable):,} unreadable: {shape} features of each in {arguments.out}'
    )
