"""Lists of image files: given in Python, or in a table as CSV."""

import csv
import functools
import os
from collections.abc import Iterable, Sequence

import numpy as np

from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.labels import read_labels
from mae_jax.data.sources.protocol import Source
from mae_jax.data.sources.splits import EVAL_SPLITS, existing_split
from mae_jax.data.sources.subset import hold_out, subset
from mae_jax.errors import UserError
from mae_jax.files.limits import reason
from mae_jax.files.paths import expand_home

IMAGE_COLUMNS = ('image', 'file', 'file_name', 'filename', 'path')
LABEL_COLUMNS = ('label', 'class', 'category')
SPLIT_COLUMN = 'split'


class FileSource(FolderSource):
    """Image files in the order given, with or without labels.

        mae_jax.FileSource(['a.jpg', 'b.jpg'], ['cat', 'dog'], root='photos')

    Its identity is that of names and labels, not of what is in the files.
    """

    def __init__(
        self,
        files: Iterable[str | os.PathLike],
        labels: Iterable | None = None,
        class_names: Sequence[str] | None = None,
        *,
        root: str | os.PathLike = '',
    ):
        """Makes a source of files.

        Args:
          files: paths, relative to `root` or absolute.
          labels: a number or a name for each file; None where there are none.
          class_names: the name of each class, in the order of the labels; None takes them from the
            labels.
          root: a folder, which may be another one when the run is resumed.

        Raises:
          UserError: there is no file, one does not exist, or a label is not of a class.
        """
        files = [os.fspath(file) for file in files]
        root = expand_home(root)
        missing = [file for file in files if not _exists(os.path.join(root, file))]
        if missing or not files:
            raise UserError(
                f'{len(missing)} of {len(files)} files do not exist, such as '
                f'{os.path.join(root, missing[0])}: correct the names, or the root.'
                if missing
                else 'there is no file: give one or more.'
            )
        super().__init__(root, files, *read_labels(labels, class_names, len(files)))

    @functools.cached_property
    def identity(self) -> str:
        names = '\0'.join((*self.files, '', *self.class_names))
        labels = np.zeros(0) if self.labels is None else self.labels
        return content_identity('files', len(self), os.fsencode(names), labels)

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike,
        *,
        image: str | None = None,
        label: str | None = None,
        root: str | os.PathLike | None = None,
    ) -> 'FileSource':
        """Makes a source of the files in a table.

        Args:
          path: a CSV file in UTF-8 whose first line names the columns.
          image: the column of paths; None takes the first of `IMAGE_COLUMNS` that there is.
          label: the column of labels, names or numbers, empty where there is none; None takes the
            first of `LABEL_COLUMNS`, if there is one.
          root: the folder of relative paths; None is that of the table.

        Raises:
          UserError: the table cannot be read, has no such column, or a file does not exist.
        """
        path = expand_home(path)
        return _from_rows(cls, path, _read_rows(path), image, label, root)


def csv_source(
    split: str, *, path: str | None, held_out_share: float | None = None, **unused
) -> Source:
    """Returns one split of a table: the rows whose column `split` names it; see `from_csv`.

    Without that column, `hold_out` chooses what is held out.

    Args:
      split: 'train', an evaluation split under any of its names, or another value of the column.
      path: of the CSV file.
      held_out_share: as of `hold_out`.
      unused: what `make_source` passes to every factory.

    Raises:
      UserError: as `FileSource.from_csv`, or there is no such split.
    """
    if not path:
        raise UserError("dataset.name='csv' needs dataset.path, a table of files and labels.")
    rows = _read_rows(path)
    source = _from_rows(FileSource, path, rows, None, None, None)
    if SPLIT_COLUMN in rows[0]:
        splits = [row[SPLIT_COLUMN] for row in rows]
        split = existing_split(path, split, list(dict.fromkeys(splits)))
        return subset(source, [i for i, value in enumerate(splits) if value == split])
    existing_split(path, split, ('train', *EVAL_SPLITS))
    return hold_out(source, held_out_share)[split != 'train']


def _read_rows(path: str | os.PathLike) -> list[dict[str, str]]:
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f'{path} cannot be read as CSV: {reason(error)}.') from error
    if not rows:
        raise UserError(f'{path} has no row: give a line of column names and one for each image.')
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(
                f'{path}, row {number}: it has another number of columns than the first.'
            )
    return rows


def _from_rows(
    cls: type[FileSource],
    path: str | os.PathLike,
    rows: list[dict[str, str]],
    image: str | None,
    label: str | None,
    root: str | os.PathLike | None,
) -> FileSource:
    columns = rows[0].keys()
    image = image or next((name for name in IMAGE_COLUMNS if name in columns), None)
    named, label = label, label or next((name for name in LABEL_COLUMNS if name in columns), None)
    if image not in columns or (named and named not in columns):
        wanted = named if image in columns else image or ' or '.join(IMAGE_COLUMNS)
        raise UserError(f'{path} has no column {wanted}; it has {", ".join(columns)}.')
    root = os.path.dirname(path) if root is None else root
    texts = [row[label] for row in rows] if label else []
    names = sorted(set(texts) - {''}, key=_in_order)
    numbers = {'': -1} | {name: number for number, name in enumerate(names)}
    labels = [numbers[text] for text in texts] if names else None
    return cls([row[image] for row in rows], labels, names, root=root)


def _in_order(label: str) -> tuple[bool, int, str]:
    """Orders numbers by their values, before names."""
    is_number = label.isdecimal()
    return not is_number, int(label) if is_number else 0, label


def _exists(path: str) -> bool:
    return '://' in path or os.path.isfile(path)
