"""Writes a data set again, as shards of images no larger than training needs.

    mae-jax prepare /data/imagenet /data/imagenet256               a folder of images
    mae-jax prepare imagenet2012 /data/imagenet256 --data_dir=/data/tfds
    python main.py --config=... --config.dataset.name=prepared \\
        --config.dataset.path=/data/imagenet256

A photograph whose short side is longer than --short_side is resized to it and stored as JPEG; a
smaller one is stored unchanged, byte for byte. Data of more than 8 bits and .npy files are resized
in their own dtype and stored without loss. Labels, class names and order stay the same; the images
that a folder's training split holds out for evaluation are fixed for good. The difference in pixels
that a run would see is printed, and stored in DST/dataset.json with a description of the shards.

However it was stopped, the same command continues, and ends with the same bytes.

Exit status: 0 done; 1 a mistake, with the remedy in the message; 143 or 130 stopped (SIGTERM,
Ctrl-C).
"""

import argparse
import sys

from mae_jax.cli.arguments import Parser
from mae_jax.runtime.interrupts import cleaning_up

GLOBAL_OPTIONS = ('command', 'verbose')
"""Arguments that `main.py` adds for every command."""


def add_arguments(parser: Parser) -> None:
    """Adds the options of the command."""
    parser.add_argument('source', metavar='SRC', help='a folder of images, or a TFDS name')
    parser.add_argument('destination', metavar='DST', help='the directory to write')
    parser.add_argument('--data_dir', help='of TFDS; unset: ~/tensorflow_datasets')
    parser.add_argument(
        '--splits',
        nargs='+',
        default=('train', 'validation'),
        metavar='NAME',
        help="unset: train validation, or the source's own name of the latter",
    )
    parser.add_argument('--short_side', type=int, default=256, help='pixels; unset: 256')
    parser.add_argument('--quality', type=int, default=95, help='of JPEG; unset: 95')
    parser.add_argument(
        '--channels', type=int, default=3, help="of the run's dataset.channels; unset: 3"
    )
    parser.add_argument(
        '--nodata',
        type=float,
        metavar='X',
        help="a value that marks missing pixels; of the run's dataset.nodata; unset: none",
    )
    parser.add_argument(
        '--shard_examples',
        type=int,
        metavar='N',
        help='images a shard; unset: 256, or as many as make 256 shards a split',
    )
    parser.add_argument('--workers', type=int, metavar='N', help='processes; unset: one a core')
    parser.add_argument(
        '--on_error',
        choices=('raise', 'skip'),
        default='raise',
        help='skip: leave out images that cannot be read, and print how many; unset: raise',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace shards in DST made with other options'
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares one data set."""
    from mae_jax.data.prepare.prepare import prepare

    options = {key: value for key, value in vars(arguments).items() if key not in GLOBAL_OPTIONS}
    try:
        with cleaning_up():
            prepare(**options)
    except (KeyboardInterrupt, SystemExit):
        print('\nstopped: run the same command to go on.', file=sys.stderr)
        raise
