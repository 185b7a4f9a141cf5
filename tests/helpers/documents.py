"""The documents of the repository: their links, their blocks, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat

from helpers.commands import ROOT

PAGES = [
    *sorted(path for path in ROOT.glob('*.md')),
    *sorted((ROOT / 'docs').glob('*.md')),
]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
FENCE = re.compile(r'^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    """What stands after the fence: 'sh', 'python', 'text', '{toctree}' ..."""
    text: str


def prose(path: Path) -> str:
    """Returns a page, or the text cells of a notebook, without its fenced blocks."""
    text = path.read_text()
    if path.suffix == '.ipynb':
        cells = nbformat.reads(text, as_version=4).cells
        text = '\n\n'.join(cell.source for cell in cells if cell.cell_type == 'markdown')
    return FENCE.sub('', text)


def blocks(path: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    matches = FENCE.finditer(path.read_text())
    return [Block(path, match['language'].strip(), match['text']) for match in matches]


def links(path: Path) -> list[str]:
    """Returns the targets of the links and pictures of a page."""
    return re.findall(r'\]\(([^()\s]+)\)', prose(path))


def anchors(path: Path) -> set[str]:
    """Returns what `page.md#...` can name: the headings, as GitHub writes them."""
    headings = re.findall(r'^#+ +(.*)$', prose(path), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """Yields the commands of a shell block as lists of arguments, without comments.

    A line that ends in a backslash, or within quotes, continues in the next.
    """
    lines = iter(text.splitlines())
    for line in lines:
        while True:
            try:
                words = shlex.split(line, comments=True)
                if not line.endswith('\\'):
                    break
                line = line[:-1]
            except ValueError:  # no closing quote, or a backslash at the end
                line = line[:-1] if line.endswith('\\') else f'{line}\n'
            line += next(lines)
        while '&&' in words:
            at = words.index('&&')
            yield words[:at]
            words = words[at + 1 :]
        if words:
            yield words
