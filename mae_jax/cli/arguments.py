"""Parses the arguments of a command; every mistake in them is one sentence."""

import argparse
import os
import re
from collections.abc import Sequence

from mae_jax.errors import UserError, did_you_mean

OVERRIDE = re.compile(r'--?(?P<no>no)?config\.')
"""The beginning of `--config.field=value`, `--config.field value` or `--noconfig.field`."""


class Parser(argparse.ArgumentParser):
    """Parses one command. Flags are written in full, and those near to a wrong one are named."""

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.takes_overrides = False

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Returns the arguments; those of `--config.field=value` as 'field=value' in `overrides`.

        Raises:
          UserError: an argument is unknown, missing or malformed.
        """
        overrides, others = split_overrides(argv)
        others = [expand_home(argument) for argument in others]
        arguments, unknown = self.parse_known_args(others)
        if unknown:
            self.error(f'{unknown[0]!r} is not an argument of {self.prog}{self._hint(unknown[0])}')
        if self.takes_overrides:
            arguments.overrides = overrides + arguments.set
            for text in arguments.set:
                if '=' not in text:
                    self.error(f'--set {text} has no value: give --config.{text}=VALUE.')
        elif overrides:
            self.error(f'{self.prog} has no config: leave out --config.{overrides[0]}')
        return arguments

    def add_overrides(self, help: str = 'any field of the config: mae-jax fields lists them'):
        """Lets the command take `--config.field=value`; it finds them in `arguments.overrides`."""
        self.takes_overrides = True
        group = self.add_argument_group('fields')
        group.add_argument('--config.FIELD', metavar='VALUE', help=help, default=argparse.SUPPRESS)
        group.add_argument(  # of version 0.1
            '--set', nargs='+', default=[], action='extend', help=argparse.SUPPRESS
        )

    def add_config(self) -> None:
        """Adds the recipe, as CONFIG or --config=CONFIG, and its fields; see `config_of`."""
        self.add_argument(
            'name',
            nargs='?',
            metavar='CONFIG',
            help='a recipe, such as vit_large, or a Python file',
        )
        self.add_argument('--config', metavar='CONFIG', help='the same')
        self.add_overrides()

    def error(self, message: str) -> None:
        """Raises a UserError in place of argparse's usage and exit status 2."""
        end = '' if message.endswith(('?', '.')) else f' ({self.prog} --help lists the arguments).'
        raise UserError(f'{message}{end}')

    def _hint(self, argument: str) -> str:
        flags = [flag for flag in self._option_string_actions if flag.startswith('--')]
        hint = did_you_mean(argument.partition('=')[0], flags) if argument[0] == '-' else ''
        if not hint and self.takes_overrides:
            hint = ': fields are given as --config.batch_size=64'
        return hint


def config_of(arguments: argparse.Namespace) -> str:
    """Returns the config that the arguments of `add_config` name.

    Raises:
      UserError: they name none, or two.
    """
    named = [text for text in (arguments.name, arguments.config) if text is not None]
    if len(named) != 1:
        problem = f'two configs, {" and ".join(named)}' if named else 'no config'
        raise UserError(f'{problem}: name one, such as quickstart or my/config.py.')
    return named[0]


def expand_home(argument: str) -> str:
    """Replaces `~` in a path or in --flag=path; a shell does it only for the first."""
    flag, equals, value = argument.partition('=') if argument[:2] == '--' else ('', '', argument)
    return f'{flag}{equals}{os.path.expanduser(value)}'


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the overrides of config fields, as 'field=value' texts, from other arguments."""
    overrides, others = [], []
    argv = list(argv)
    while argv:
        argument = argv.pop(0)
        match = OVERRIDE.match(argument)
        if match is None:
            others.append(argument)
            continue
        text = argument[match.end() :]
        if match['no']:
            text += '=False'
        elif '=' not in text:
            text += f'={argv.pop(0) if argv and not argv[0].startswith("-") else True}'
        overrides.append(text)
    return overrides, others
