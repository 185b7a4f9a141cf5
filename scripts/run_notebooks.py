"""Runs notebooks in an empty directory, and stores what they print and show in them.

    python scripts/run_notebooks.py notebooks/*.ipynb

Pictures of cells with the tag `pictures-not-stored` are left out: those of photographs whose
licence asks for more than this repository gives.
"""

import argparse
import os
import tempfile
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]
NOT_STORED = 'pictures-not-stored'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('notebooks', nargs='+', type=Path)
    for path in parser.parse_args().notebooks:
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, folder)
            tidy(notebook, folder)
        nbformat.write(notebook, path)
        print(f'{path}: {path.stat().st_size / 1024:,.0f} KB')


def execute(notebook: nbformat.NotebookNode, folder: str | os.PathLike) -> None:
    """Runs all cells, on the CPU, with the package of this checkout.

    Raises:
      CellExecutionError: a cell failed.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep)
    changes = {'PYTHONPATH': path, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    environment = os.environ | changes
    where = {'metadata': {'path': str(folder)}}
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name='python3',
        resources=where,
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment)


def tidy(notebook: nbformat.NotebookNode, folder: str) -> None:
    """Removes what differs from machine to machine, and pictures that are not to be stored."""
    notebook.metadata.pop('language_info', None)
    for cell in notebook.cells:
        if cell.cell_type != 'code':
            continue
        kept = []
        for output in cell.outputs:
            if output.output_type == 'stream':
                output.text = output.text.replace(f'{folder}/', '')
            output.get('data', {}).pop('image/jpeg', None)  # there is a PNG of it too
            is_picture = 'image/png' in output.get('data', {})
            hidden = is_picture and NOT_STORED in cell.metadata.get('tags', ())
            if not hidden and output.get('name') != 'stderr':
                kept.append(output)
        cell.outputs = kept


if __name__ == '__main__':
    main()
