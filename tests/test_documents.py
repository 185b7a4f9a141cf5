"""Links, commands and code in README.md, docs/ and the notebooks are those of the package."""

import configparser
import os
import re
from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.documents import NOTEBOOKS, PAGES, anchors, blocks, commands, links, prose

from mae_jax.ablation import suite
from mae_jax.ablation.suite import load_suite
from mae_jax.cli.main import COMMANDS, parse_arguments
from mae_jax.config.files import load_config

LANGUAGES = ('sh', 'python', 'python no-test', 'text', 'bibtex')
OTHERS = ('apt', 'curl', 'docker', 'export', 'lint-imports', 'ruff', 'tfds')
"""Programs that are not part of the repository."""
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


SHELL = [
    pytest.param(command, id=f'{name(page)}: {" ".join(command)[:60]}')
    for page in PAGES
    for block in blocks(page)
    if block.language == 'sh'
    for command in commands(block.text)
]


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 120


@pytest.mark.parametrize('page', [*PAGES, *NOTEBOOKS], ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for link in links(page):
        if re.match(r'[a-z]+:', link):
            continue
        target, _, anchor = link.partition('#')
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f'{name(page)}: {link}'
        assert path.is_relative_to(ROOT), f'{name(page)}: {link}'
        if anchor:
            assert anchor in anchors(path), f'{name(page)}: {link}'


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_tested(page):
    for block in blocks(page):
        assert block.language in LANGUAGES or block.language.startswith('{'), block
        if block.language.startswith('python'):
            compile(block.text, name(page), 'exec')


def test_every_page_of_the_site_is_in_its_contents():
    index = (ROOT / 'docs/index.md').read_text()
    listed = [line for block in re.findall(r'```\{toctree\}\n(.*?)```', index, re.DOTALL)
              for line in block.splitlines() if line and line[0] != ':']  # fmt: skip
    pages = [path.stem for path in (ROOT / 'docs').glob('*.md')]
    assert sorted([*listed, 'index']) == sorted(pages)


@pytest.mark.parametrize('command', SHELL)
def test_every_command_is_one_that_the_program_takes(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(suite, 'depth_of', lambda path: 12)  # of a run that does not exist
    while re.match(r'[A-Z_]+=', command[0]):
        command = command[1:]
    if command[:2] == ['taskset', '-c']:
        command = command[3:]
    program, *arguments = command
    if program == 'python':
        check_python(arguments)
    elif program == 'mae-jax':
        check_ours(arguments)
    elif program == 'pip':
        check_pip(arguments)
    elif program == 'launch/local.sh':
        assert (ROOT / program).exists() and arguments[0].isdecimal()
        check_ours(['train', *arguments[1:]], 'main.py')
    elif program.startswith('benchmarks/'):
        assert os.access(ROOT / program, os.X_OK)
    else:
        assert program in OTHERS


def check_ours(arguments: list[str], program: str = 'mae-jax') -> None:
    """Parses a command, and loads its config with the fields it sets."""
    parsed = parse_arguments(arguments, program)
    if hasattr(parsed, 'suite'):
        load_suite(parsed.suite, parsed.overrides)
    elif hasattr(parsed, 'config'):
        load_config(parsed.name or parsed.config, parsed.overrides)


def check_python(arguments: list[str]) -> None:
    if arguments[0] == '-c':
        compile(arguments[1], 'python -c', 'exec')
    elif arguments[0] == '-m':
        assert arguments[1] in ('pytest', 'sphinx')
        markers = [arguments[i + 1] for i, word in enumerate(arguments) if word == '-m' and i]
        known = [line.split(':')[0] for line in SETUP['tool:pytest']['markers'].splitlines()]
        assert set(markers) <= set(known)
    elif arguments[0] == 'main.py':
        check_ours(['train', *arguments[1:]], 'main.py')
    else:
        script = ROOT / arguments[0]
        text = script.read_text() + (ROOT / 'benchmarks/measure.py').read_text()
        for word in arguments[1:]:
            if word.startswith('--'):
                assert f"'{word.partition('=')[0]}'" in text, word


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == 'install'
    for extras in re.findall(r'\[(.*?)\]', ' '.join(arguments)):
        assert set(extras.split(',')) <= set(SETUP['options.extras_require']), extras


@pytest.mark.parametrize('page', [*PAGES, *NOTEBOOKS], ids=name)
def test_commands_in_sentences_are_commands(page):
    for line in re.findall(r'`(mae-jax [^`]+)`', prose(page)):
        word = line.split()[1]
        assert word in COMMANDS or word[0] in '<-', line


def test_the_address_of_the_repository_is_the_same_everywhere():
    owner_and_name = SETUP['metadata']['url'].removeprefix('https://github.com/')
    others = ('.github/ISSUE_TEMPLATE/config.yml', 'CITATION.cff')
    for path in [*PAGES, *NOTEBOOKS, *(ROOT / other for other in others)]:
        pattern = r'github\.com/(?:github/)?([\w-]+/mae_jax)\b|github/([\w-]+/mae_jax)/blob'
        for match in re.findall(pattern, path.read_text()):
            assert ''.join(match) == owner_and_name, name(path)
