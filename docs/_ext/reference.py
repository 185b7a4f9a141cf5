"""Writes the reference from the package itself: its commands and its public names."""

import contextlib
import importlib
import inspect
import io
import re

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx


class CommandHelp(Directive):
    """A section for each command of `mae-jax`, with what `mae-jax <command> --help` prints."""

    def run(self) -> list[nodes.Node]:
        from mae_jax.cli.main import COMMANDS, parse_arguments

        sections = []
        for name in sorted(COMMANDS):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                parse_arguments([name, '--help'])
            title = f'mae-jax {name}'
            section = nodes.section(ids=[nodes.make_id(title)], names=[title])
            section += nodes.title(text=title)
            section += nodes.literal_block(printed.getvalue(), printed.getvalue(), language='text')
            sections.append(section)
        return sections


class PublicNames(Directive):
    """The documentation of every name in `mae_jax.__all__`."""

    def run(self) -> list[nodes.Node]:
        import mae_jax

        lines = []
        for name in mae_jax.__all__:
            value = getattr(mae_jax, name)
            if inspect.ismodule(value):
                lines += [f'.. py:module:: mae_jax.{name}', '', *_first_paragraph(value), '']
                continue
            kind = 'class' if inspect.isclass(value) else 'function'
            lines += [f'.. auto{kind}:: mae_jax.{name}', '']
            if kind == 'class':
                members = ', '.join(_own_methods(value))
                lines[-1:] = [f'   :members: {members}', ''] if members else ['']
        content = StringList(lines, source='mae_jax')
        node = nodes.container()
        self.state.nested_parse(content, 0, node)
        return node.children


class ModuleText(Directive):
    """The docstring of a module, which is Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = inspect.getdoc(importlib.import_module(self.arguments[0]))
        node = nodes.container()
        self.state.nested_parse(StringList(text.splitlines(), source=self.arguments[0]), 0, node)
        return node.children


def _first_paragraph(module) -> list[str]:
    return [line.strip() for line in inspect.getdoc(module).split('\n\n')[0].splitlines()]


def _own_methods(value: type) -> list[str]:
    """Returns the public methods that the class itself defines and describes."""
    methods = (name for name, item in vars(value).items() if inspect.isroutine(item))
    return [name for name in methods if name[0] != '_' and vars(value)[name].__doc__]


def mark_examples(app, what, name, obj, options, lines: list[str]) -> None:
    """Makes indented paragraphs of a docstring code, before its sections are read."""
    for index in reversed(range(2, len(lines))):
        before = [line for line in lines[:index] if line.strip()][-1]
        begins = lines[index][:4].isspace() and not lines[index - 1].strip()
        if begins and not before[0].isspace():
            lines[index:index] = ['::', '']


def shorten_signature(app, what, name, obj, options, signature, returns) -> tuple:
    """Leaves out what Flax adds to a module's fields, and the module of JAX's arrays."""

    def shorten(text: str | None) -> str | None:
        return text and text.replace('jaxlib._jax.Array', 'Array').replace(
            'numpy.ndarray', 'ndarray'
        )

    signature = signature and re.sub(r', parent: .*(?=\))', '', signature)
    return shorten(signature), shorten(returns)


def setup(app: Sphinx) -> dict:
    app.add_directive('command-help', CommandHelp)
    app.add_directive('module-text', ModuleText)
    app.add_directive('public-names', PublicNames)
    app.connect('autodoc-process-docstring', mark_examples, priority=400)
    app.connect('autodoc-process-signature', shorten_signature)
    return {'parallel_read_safe': False}
