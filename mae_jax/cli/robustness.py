"""Evaluates a classifier on ImageNet-A, -R, -Sketch or -C, or on corrupted images of one's own.

    mae-jax robustness runs/finetune_base --data /data/imagenet-a
    mae-jax robustness runs/finetune_base --data /data/imagenet-c     folders snow/3/n01440764/ ...
    mae-jax robustness mae_finetuned_vit_base.pth --data /data/imagenet-r
    mae-jax robustness runs/finetune                 its own held-out images, corrupted
    mae-jax robustness runs/finetune --data photos --images 500

Which set a folder is shows in its own folders; --kind decides otherwise. Writes table.md, with the
paper's figures, plot.png (with matplotlib) and results.json; where it was stopped, the same command
goes on. To corrupt images of your own: pip install 'mae_jax[robustness]'.
"""

import argparse

from mae_jax.cli.arguments import Parser
from mae_jax.cli.train import default_workdir, run_config


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        'model', metavar='RUN', help='a run, a checkpoint, a file, hf://owner/name: a classifier'
    )
    parser.add_argument('--data', metavar='DIR', help='images; unset: those that RUN has held out')
    parser.add_argument(
        '--kind',
        help='imagenet_a | imagenet_r | imagenet_sketch | imagenet_c | corruptions; unset: by '
        'what is in DIR',
    )
    parser.add_argument(
        '--classes',
        metavar='FILE',
        help="the folder of each class, a line each, in the order of RUN's outputs; imagenet: its "
        'sorted wnids; unset: the names that RUN has',
    )
    parser.add_argument(
        '--images', type=int, metavar='N', help='of each set, evenly spread; unset: all'
    )
    parser.add_argument(
        '--out', metavar='DIR', help='unset: robustness/<kind> in RUN, or below runs/'
    )
    parser.add_overrides()


def run(arguments: argparse.Namespace) -> None:
    """Evaluates one classifier on one set of images."""
    from mae_jax.experiment.robustness_config import make_config, within

    config = make_config(
        arguments.model,
        data=arguments.data,
        kind=arguments.kind,
        classes=arguments.classes,
        images=arguments.images,
        overrides=arguments.overrides,
    )
    name = f'robustness:{config.robustness.kind}'
    run_config(
        config, arguments.out or within(arguments.model, config) or default_workdir(name), name
    )
