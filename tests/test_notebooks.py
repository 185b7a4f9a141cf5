"""The notebooks run from a clean kernel, in an empty folder, without a network."""

import re

import pytest
from helpers.commands import ROOT

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')
pytest.importorskip('matplotlib')

NAMES = sorted(path.stem for path in (ROOT / 'notebooks').glob('*.ipynb'))


def read(name):
    return nbformat.read(ROOT / 'notebooks' / f'{name}.ipynb', as_version=4)


def run(name, folder):
    """Executes a notebook: (everything it printed, the number of pictures it showed).

    Raises:
      CellExecutionError: a cell failed.
    """
    from scripts.run_notebooks import execute

    notebook = read(name)
    execute(notebook, folder)
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    printed = ''.join(output.text for output in outputs if output.output_type == 'stream')
    shown = [output for output in outputs if 'image/png' in output.get('data', {})]
    assert 'Collecting' not in printed  # nothing was installed
    return printed, len(shown)


def numbers(pattern, text):
    """What the groups of a pattern that occurs once match, as floats."""
    (actual,) = re.findall(pattern, text)
    return [float(number) for number in ((actual,) if isinstance(actual, str) else actual)]


def test_there_are_three():
    assert NAMES == ['pretrain_on_a_folder', 'reconstruct', 'use_the_encoder']


@pytest.mark.parametrize('name', NAMES)
def test_notebook_is_stored_with_its_outputs_and_begins_with_its_installation(name):
    code = [cell for cell in read(name).cells if cell.cell_type == 'code']
    assert "if importlib.util.find_spec('mae_jax') is None:" in code[0].source
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and all(output.output_type != 'error' for output in outputs)
    texts = [output.get('text', '') for output in outputs]
    texts += [data for output in outputs for key, data in output.get('data', {}).items()
              if key.startswith('text/')]  # fmt: skip
    assert not re.search(r'/(tmp|home|root)/', ''.join(texts))  # of the machine it was run on
    assert (ROOT / 'notebooks' / f'{name}.ipynb').stat().st_size < 400_000


def test_photographs_of_others_are_not_stored():
    shown = [cell for cell in read('reconstruct').cells if 'display(Image(' in cell.source]
    assert len(shown) == 2
    for cell in shown:
        assert not any('image/png' in output.get('data', {}) for output in cell.outputs)


@pytest.mark.slow
def test_reconstruct_shows_pictures_better_than_the_average(tmp_path):
    printed, pictures = run('reconstruct', tmp_path)
    assert pictures == 2
    model, average = numbers(r'model (\d\.\d+)\naverage (\d\.\d+)', printed)
    assert model < 0.8 * average


@pytest.mark.exhaustive
def test_pretrain_on_a_folder_ends_with_a_better_encoder_and_its_card(tmp_path):
    printed, pictures = run('pretrain_on_a_folder', tmp_path)
    assert pictures > 2  # some of the digits, the curve, the reconstructions
    assert (tmp_path / 'runs' / 'folder' / 'model_card.md').exists()
    untrained, pretrained = numbers(r'k-NN +(0\.\d+) +(0\.\d+)', printed)
    assert pretrained > untrained + 0.1


@pytest.mark.exhaustive
def test_use_the_encoder_trains_heads_that_pretraining_helped(tmp_path):
    printed, pictures = run('use_the_encoder', tmp_path)
    assert pictures == 2
    (untrained,) = numbers(r'untrained encoder: accuracy (0\.\d+)', printed)
    (pretrained,) = numbers(r'pretrained encoder: accuracy (0\.\d+)', printed)
    (whole,) = numbers(r'as a whole: accuracy (0\.\d+)', printed)
    assert 0.1 < untrained < pretrained - 0.05
    assert whole > 0.9
