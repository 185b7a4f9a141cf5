"""What lies in a folder: images, other files, folders. Names are bytes, whatever their encoding."""

import collections
import functools
import importlib.util
import os
from collections.abc import Iterable, Sequence

EXTENSIONS = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.apng', '.webp', '.bmp', '.gif', '.tif', '.tiff'),
    *('.npy', '.avif', '.jp2', '.j2k', '.ppm', '.pgm', '.pbm', '.pnm'),
)
HEIF_EXTENSIONS = ('.heic', '.heif')
"""Read where `pillow-heif` is installed."""


def images_below(root: str, folder: str) -> tuple[list[str], collections.Counter]:
    """Finds all images below one of the folders of a root.

    Links are followed, except to a folder that contains them, which would never end.

    Returns:
      (paths relative to the root, in the order of their bytes; how many files have another suffix)
    """
    names, others = [], collections.Counter()
    for directory, folders, files in os.walk(os.path.join(root, folder), followlinks=True):
        resolved = os.path.realpath(directory)
        folders[:] = [
            name
            for name in folders
            if not name.startswith('.')
            and not _contains(os.path.realpath(os.path.join(directory, name)), resolved)
        ]
        relative = os.path.relpath(directory, root)
        names += [os.path.normpath(os.path.join(relative, f)) for f in files if is_image(f)]
        others.update(_suffix(f) for f in files if not (is_image(f) or f.startswith('.')))
    return sorted(names, key=os.fsencode), others


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix[1:].isalnum() and suffix.isascii() else 'without a suffix'


def passed_over(others: collections.Counter) -> tuple[str, ...]:
    """Describes the files that are no images, in one text; () where there are none."""
    if not others:
        return ()
    kinds = ', '.join(f'{count:,} {suffix}' for suffix, count in others.most_common(5))
    remedy = ''
    if any(others[suffix] for suffix in HEIF_EXTENSIONS):
        remedy = ' (to read .heic, `pip install pillow-heif`)'
    return (f'passed over {kinds}{", ..." if len(others) > 5 else ""}{remedy}',)


def _contains(folder: str, other: str) -> bool:
    return os.path.commonpath([folder, other]) == folder


def is_image(name: str) -> bool:
    """Returns whether a file's name is that of an image, and does not hide it."""
    return not name.startswith('.') and name.lower().endswith(_extensions())


@functools.cache
def _extensions() -> tuple[str, ...]:
    has_heif = importlib.util.find_spec('pillow_heif') is not None
    return EXTENSIONS + (HEIF_EXTENSIONS if has_heif else ())


def subfolders(folder: str) -> list[str]:
    """Returns the names of the folders in a folder, in the order of their bytes."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    return sorted((name for name in names if name[0] != '.'), key=os.fsencode)


def find_split(path: str, names: Iterable[str]) -> str | None:
    """Returns the folder with the first of these names; one in capitals if there is no other."""
    folders = subfolders(path)
    for name in names:
        same = [folder for folder in folders if folder.lower() == name]
        if same:
            return os.path.join(path, name if name in same else same[0])
    return None


def text(name: str) -> str:
    """Returns the name of a folder as text, the same in every locale, whatever its bytes are."""
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


def listed(names: Sequence[str]) -> str:
    """Joins the first five names."""
    return ', '.join(map(text, names[:5])) + (', ...' if len(names) > 5 else '')
