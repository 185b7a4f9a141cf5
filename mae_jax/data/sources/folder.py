"""Folders of image files, with or without a folder for each class."""

import dataclasses
import functools
import os
import zlib
from collections.abc import Iterable

import numpy as np

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.limits import MAX_IMAGE_BYTES
from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.protocol import Example
from mae_jax.data.sources.splits import EVAL_SPLITS
from mae_jax.errors import UserError
from mae_jax.files.limits import read_bytes, reason
from mae_jax.files.paths import similar_path

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.npy')
HELD_OUT = 20
"""Where a folder has no evaluation split, one image of this many is kept for evaluation."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FolderSource:
    """Image files below a root folder.

    Attributes:
      root: the folder.
      files: their paths relative to it, in the order of the examples.
      labels: int [N], or None where there are none.
      class_names: the name of each class, in the order of the labels.

    Raises (from an item):
      BadImage: the file cannot be read, or is larger than `MAX_IMAGE_BYTES`.
    """

    root: str
    files: list[str]
    labels: np.ndarray | None
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def identity(self) -> str:
        return content_identity('folder', len(self), '\0'.join(self.files).encode())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        name = os.path.join(self.root, self.files[index])
        try:
            image = read_bytes(name, MAX_IMAGE_BYTES)
        except OSError as error:
            raise BadImage(f'{name} cannot be read: {reason(error)}.') from error
        label = -1 if self.labels is None else int(self.labels[index])
        return {'image': image, 'label': label, 'name': name}


def folder_source(split: str, *, path: str | None, **unused) -> FolderSource:
    """Returns the images in `path/<split>/<class>/`, in `path/<split>/`, or all below `path`.

    Where `path` has no folder for a split, all images below it are used, without labels. Where it
    has no evaluation split, one image in `HELD_OUT` (by a hash of its name) is left out of
    training and kept for evaluation. Hidden files and files of other kinds are ignored.

    Args:
      split: 'train', an evaluation split under any of its names, or the name of a folder.
      path: the root folder.
      unused: what `make_source` passes to every factory.

    Raises:
      UserError: the folder or the split does not exist or has no images, images lie beside class
        folders, or the splits have different class folders.
    """
    if not path:
        raise UserError("dataset.name='folder' needs dataset.path, the folder of the images.")
    if not os.path.isdir(path):
        raise UserError(f'dataset.path={path!r} is not a folder{similar_path(path) or "."}')
    train = _find_split(path, ('train',))
    held_out = _find_split(path, EVAL_SPLITS)
    if split not in ('train', *EVAL_SPLITS):
        return _read_split(os.path.join(path, split))
    if train and held_out:
        if split == 'train':
            held_out_classes = _subfolders(held_out)
            source = _read_split(train)
            _check_classes(source.class_names, held_out_classes, train, held_out)
            return source
        chosen = _find_split(path, (split,)) or held_out
        _check_classes(_subfolders(train), _subfolders(chosen), train, chosen)
        return _read_split(chosen)
    if held_out:
        raise UserError(f'{path} has {os.path.basename(held_out)}/ but no train/.')
    everything = _read_split(train) if train else _read_flat(path)
    return _hold_out(everything, evaluation=split != 'train')


def _read_split(folder: str) -> FolderSource:
    if not os.path.isdir(folder):
        root, split = os.path.split(folder)
        existing = ', '.join(_subfolders(root)) or 'no folder'
        raise UserError(f'{root} has no split {split!r}; it has {existing}.')
    classes = _subfolders(folder)
    if not classes:
        return _read_flat(folder)
    loose = [name for name in os.listdir(folder) if _is_image(name)]
    if loose:
        raise UserError(
            f'{folder} has images ({loose[0]}, ...) beside its class folders; '
            'move them into a class folder, or the class folders away.'
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        images = images_below(folder, name)
        if not images:
            raise UserError(f'The class folder {os.path.join(folder, name)} has no image in it.')
        files += images
        labels += [label] * len(images)
    return FolderSource(folder, files, np.array(labels, np.int32), classes)


def _read_flat(folder: str) -> FolderSource:
    files = images_below(folder, '')
    if not files:
        kinds = ', '.join(EXTENSIONS)
        raise UserError(f'{folder} has no image in it; images are files that end in {kinds}.')
    return FolderSource(folder, files, None, [])


def _hold_out(source: FolderSource, evaluation: bool) -> FolderSource:
    """Returns the training or the evaluation images of a source that has no split of its own.

    Which of the two a file belongs to does not depend on the other files.
    """
    hashes = np.array([zlib.crc32(name.encode()) for name in source.files])
    held_out = hashes % HELD_OUT == 0
    if not held_out.any() or held_out.all():
        held_out = hashes == hashes.min()
    keep = np.flatnonzero(held_out == evaluation)
    if not len(keep):
        raise UserError(f'{source.root} has one image only: too few to keep one for evaluation.')
    files = [source.files[i] for i in keep]
    labels = None if source.labels is None else source.labels[keep]
    return FolderSource(source.root, files, labels, source.class_names)


def images_below(root: str, folder: str) -> list[str]:
    """Returns the sorted paths, relative to the root, of all images below one of its folders.

    Links are followed, except to a folder that contains them, which would never end.
    """
    names = []
    for directory, folders, files in os.walk(os.path.join(root, folder), followlinks=True):
        resolved = os.path.realpath(directory)
        folders[:] = [
            name
            for name in folders
            if not name.startswith('.')
            and not _contains(os.path.realpath(os.path.join(directory, name)), resolved)
        ]
        relative = os.path.relpath(directory, root)
        names += [os.path.normpath(os.path.join(relative, f)) for f in files if _is_image(f)]
    return sorted(names)


def _contains(folder: str, other: str) -> bool:
    return os.path.commonpath([folder, other]) == folder


def _is_image(name: str) -> bool:
    return not name.startswith('.') and name.lower().endswith(EXTENSIONS)


def _subfolders(folder: str) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != '.')


def _find_split(path: str, names: Iterable[str]) -> str | None:
    folders = (os.path.join(path, name) for name in names)
    return next((folder for folder in folders if os.path.isdir(folder)), None)


def _check_classes(train: list[str], held_out: list[str], train_folder: str, folder: str) -> None:
    """Raises a UserError where the class folders of two splits have different names."""

    def listed(names):
        return ', '.join(sorted(names)[:5]) + (', ...' if len(names) > 5 else '')

    only_train, only_held_out = set(train) - set(held_out), set(held_out) - set(train)
    if only_train or only_held_out:
        differences = [
            f'only {split} has {listed(names)}'
            for split, names in ((train_folder, only_train), (folder, only_held_out))
            if names
        ]
        raise UserError(
            f'The class folders of the splits differ ({"; ".join(differences)}): give both the '
            'same class folders.'
        )
