"""Lists the fields of a config: name, default, meaning.

    mae-jax fields                  all of them
    mae-jax fields optimizer        a group, or names that begin so, or else contain it

Each can be changed on the command line: --config.optimizer.base_lr=1e-3.
"""

import argparse

from mae_jax.cli.arguments import Parser


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument('prefix', nargs='?', default='', metavar='PREFIX', help='unset: all fields')


def run(arguments: argparse.Namespace) -> None:
    """Prints the list."""
    from mae_jax.config.reference import format_fields

    print(format_fields(arguments.prefix))
