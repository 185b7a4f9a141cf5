"""Where annotations in COCO's format and their images lie.

| | annotations | images |
|---|---|---|
| COCO | `annotations/instances_train2017.json` | `train2017/`, or `images/train2017/` |
| as tools export one split | `train/_annotations.coco.json` | `train/` |
| as tools export all | the one `.json` in the root or in `annotations/` | the root, or `images/` |
| `dataset.annotations` | `{split}.json`, or any file | the same |

A name in a file is looked for in the folder of its split first, then in those above it.
"""

import os
import posixpath
import re
from collections.abc import Iterable, Sequence

from mae_jax.data.sources.listing import find_split, listed, subfolders
from mae_jax.data.sources.splits import EVAL_SPLITS, TRAIN_SPLITS, NoSplit
from mae_jax.errors import UserError, counted
from mae_jax.files.limits import is_inside

FOLDER = 'annotations'
INSTANCES = 'instances_'
BESIDE_IMAGES = '_annotations.coco.json'
SPLIT = '{split}'


def find_annotations(root: str, annotations: str | None, split: str) -> tuple[str, bool]:
    """Finds the annotations of a split.

    Args:
      root: of the data set.
      annotations: a file, relative to the root, which may have '{split}' in its name; None to look.
      split: 'train', an evaluation split under any of its names, or what a file is named by.

    Returns:
      (path of the file; whether both splits are taken from it)

    Raises:
      UserError: there is no such file, or there are several.
    """
    if annotations and SPLIT not in annotations:
        file = os.path.join(root, annotations)
        if not os.path.isfile(file):
            raise UserError(f'dataset.annotations={annotations!r} is no file in {root}.')
        return file, True
    if split not in ('train', *EVAL_SPLITS):
        if file := _of_split(root, annotations, (split,)):
            return file, False
        raise NoSplit(f'{root} has no annotations of a split {split!r}; {_contents(root)}.')
    train = _of_split(root, annotations, TRAIN_SPLITS)
    names = (split, *EVAL_SPLITS) if split in EVAL_SPLITS else EVAL_SPLITS
    held_out = _of_split(root, annotations, names)
    if held_out and not train:
        if split == 'train':
            raise NoSplit(f'{root} has {os.path.relpath(held_out, root)} and none for training.')
        return held_out, False
    if train:
        return (held_out, False) if held_out and split != 'train' else (train, not held_out)
    if annotations:
        raise UserError(f'dataset.annotations={annotations!r} is no file in {root} for train.')
    files = _json_files(root)
    if len(files) != 1:
        raise UserError(
            f'{root} has no {FOLDER}/{INSTANCES}train*.json and not one .json alone: name the file '
            f'by dataset.annotations ({_contents(root)}).'
        )
    return os.path.join(root, files[0]), True


def find_images(root: str, file: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """Finds the folder that the names in a file of annotations are relative to.

    Returns:
      (the folder, the paths in it)

    Raises:
      UserError: a name leads out of it, or an image is not there.
    """
    paths = [posixpath.normpath(name.replace('\\', '/')) for name in names]
    outside = [name for name, path in zip(names, paths, strict=True) if not is_inside(path)]
    if outside:
        raise UserError(
            f'{file} has an image {outside[0]!r}, which must be a path in the folder of the '
            'images: correct file_name.'
        )
    stem = os.path.splitext(os.path.basename(file))[0].removeprefix(INSTANCES)
    folders = (stem, f'images/{stem}', 'images', '', os.path.relpath(os.path.dirname(file), root))
    folders = list(dict.fromkeys(os.path.normpath(os.path.join(root, each)) for each in folders))
    folders = [each for each in folders if os.path.isdir(each)]
    missing = {each: _missing(each, paths) for each in folders}
    folder = min(folders, key=lambda each: len(missing[each]))
    if lacking := missing[folder]:
        places = folders if len(lacking) == len(paths) else [folder]
        raise UserError(
            f'{file} lists {lacking[0]}, which is not in {" nor in ".join(places)}, one of '
            f'{len(lacking):,} such among {counted(len(paths), "image")}: dataset.path must be the '
            'folder that file_name is relative to, or contain it.'
        )
    return folder, paths


def _of_split(root: str, annotations: str | None, names: Iterable[str]) -> str | None:
    """Returns the file of the first of these splits that has one."""
    for name in names:
        if annotations:
            found = [annotations.replace(SPLIT, name)]
            found = [file for file in found if os.path.isfile(os.path.join(root, file))]
        else:
            exact = f'{FOLDER}/{INSTANCES}{name}.json'
            pattern = re.compile(rf'{FOLDER}/{INSTANCES}{re.escape(name)}(?![a-z]).*\.json')
            found = [file for file in _json_files(root) if pattern.fullmatch(file)]
            found = [exact] if exact in found else found
        if len(found) > 1:
            raise UserError(
                f'{root} has {listed(found)} for {name}: name one by dataset.train_split or '
                'dataset.eval_split, such as train2017.'
            )
        folder = None if annotations else find_split(root, (name,))
        if not found and folder and _exists(folder, BESIDE_IMAGES):
            found = [os.path.join(os.path.basename(folder), BESIDE_IMAGES)]
        if found:
            return os.path.join(root, found[0])
    return None


def _json_files(root: str) -> list[str]:
    """Returns the .json files in the root and in annotations/, relative to the root."""
    files = []
    for folder in ('', FOLDER):
        place = os.path.join(root, folder)
        names = os.listdir(place) if os.path.isdir(place) else []
        files += [posixpath.join(folder, name) for name in names if name.endswith('.json')]
    return sorted(name for name in files if not os.path.basename(name).startswith('.'))


def _contents(root: str) -> str:
    files = _json_files(root)
    folders = [f'{name}/' for name in subfolders(root)]
    return f'it has {listed([*files, *folders]) or "no file"}'


def _exists(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))


def _missing(folder: str, paths: Sequence[str]) -> list[str]:
    """Returns the paths that do not exist; each folder is listed once."""
    present = {}
    for path in paths:
        place = os.path.dirname(path)
        if place not in present:
            full = os.path.join(folder, place)
            present[place] = set(os.listdir(full)) if os.path.isdir(full) else set()
    return [path for path in paths if os.path.basename(path) not in present[os.path.dirname(path)]]
