"""Uploads a finished run to the Hugging Face Hub, with its model card and picture.

    mae-jax push runs/folder me/my-mae --private
    mae-jax push runs/finetune/checkpoints/4000 me/my-classifier

Needs `pip install 'mae_jax[hub]'` and a token that may write: `hf auth login`, or HF_TOKEN. The
model is read back by its address, wherever a path of a model is taken:

    mae_jax.load_encoder('hf://me/my-mae')
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument('source', metavar='RUN', help='a finished run, or one of its checkpoints')
    parser.add_argument('repository', metavar='OWNER/NAME', help='on the Hub; made if it is new')
    parser.add_argument('--private', action='store_true', help='nobody else may see it')


def run(arguments: argparse.Namespace) -> None:
    """Uploads one run."""
    from mae_jax.interop.push import push

    push(arguments.source, arguments.repository, private=arguments.private)
