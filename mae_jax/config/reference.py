"""Lists the fields of a config, with default and comment, as the recipes define them."""

import ast
import io
import os
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from mae_jax.config.fields import field_names, group_of, similar_field
from mae_jax.config.files import RECIPES, load_config
from mae_jax.errors import UserError

SECTIONS = {
    'default': 'Pretraining (configs/default.py)',
    'finetune': 'Classification (configs/finetune.py), where it adds or changes a field',
    'segment': 'Segmentation (configs/segment.py), where it adds or changes a field',
    'detect': 'Detection (configs/detect.py), where it adds or changes a field',
    'knn': 'k-NN and linear fits (configs/knn.py), where they add or change a field',
    'robustness': 'Robustness (configs/robustness.py), where it adds or changes a field',
}
"""Recipe that defines fields -> title."""
WIDTH = 80
VALUES = 40
"""Column where comments begin."""


class Field(NamedTuple):
    """Describes a field: `default` is Python's text of the value, or 'unset'."""

    name: str
    default: str
    comment: str


def list_fields(recipe: str) -> list[Field]:
    """Returns the fields that a recipe assigns, in the order of its file."""
    with open(os.path.join(RECIPES, f'{recipe}.py'), encoding='utf-8') as file:
        source = file.read()
    config, comments = load_config(recipe), _comments(source)
    fields = {}
    for name, line in _assignments(source, config):
        value = group_of(config, name)[name.rpartition('.')[2]]
        default = 'unset' if value is None else repr(value)
        fields.setdefault(name, Field(name, default, comments.get(line, '')))
    return list(fields.values())


def format_fields(prefix: str = '') -> str:
    """Formats the fields whose names begin with `prefix`, or else contain it, at 80 columns.

    Raises:
      UserError: there is no such field.
    """
    sections = {title: list_fields(recipe) for recipe, title in SECTIONS.items()}
    names = [field.name for fields in sections.values() for field in fields]
    chosen = {name for name in names if name.startswith(prefix)}
    chosen = chosen or {name for name in names if prefix in name}
    if not chosen:
        groups = {name.rpartition('.')[0] for name in names} - {''}
        hint = similar_field(prefix, [*sorted(groups), *names]) or ': mae-jax fields lists them.'
        raise UserError(f'there is no config field {prefix!r}{hint}')
    lines = []
    for title, fields in sections.items():
        shown = [field for field in fields if field.name in chosen]
        if shown:
            lines += [title, '', *(line for field in shown for line in _format(field)), '']
    return '\n'.join(lines[:-1])


def _format(field: Field) -> list[str]:
    head = f'  {field.name} = {field.default}'
    if not field.comment:
        return [head]
    if len(head) + 2 > VALUES:
        return [head, *_wrap(field.comment, ' ' * 6)]
    first, *others = _wrap(field.comment, ' ' * VALUES)
    return [f'{head:<{VALUES}}{first.lstrip()}', *others]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _comments(source: str) -> Mapping[int, str]:
    """Returns number of a line -> the comment at its end."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.removeprefix('#').strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _assignments(source: str, config: ConfigDict) -> Iterator[tuple[str, int]]:
    """Yields (dotted name, number of its last line) of the fields that the functions assign.

    In `config.model = model = ConfigDict()` the variable stands for the group.
    """
    known, groups = set(field_names(config)), {'config': ''}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign):
            continue
        texts = [ast.unparse(target) for target in node.targets]
        names = [_resolve(text, groups) for text in (*texts, ast.unparse(node.value))]
        named_groups = [name for name in names if name and name not in known]
        for text, name in zip(texts, names[:-1], strict=True):
            if name in known:
                yield name, node.end_lineno
            elif named_groups and text.isidentifier():
                groups[text] = f'{named_groups[0]}.'


def _resolve(text: str, groups: Mapping[str, str]) -> str:
    """Returns the dotted name of 'model.width', where `groups` has the variable, or else ''."""
    variable, _, rest = text.partition('.')
    return groups[variable] + rest if variable in groups and rest.isidentifier() else ''
