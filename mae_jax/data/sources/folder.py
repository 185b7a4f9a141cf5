"""Folders of image files, with or without a folder for each class."""

import collections
import dataclasses
import functools
import os
import zlib
from collections.abc import Sequence

import numpy as np

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.limits import MAX_IMAGE_BYTES
from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.listing import (
    EXTENSIONS,
    find_split,
    images_below,
    is_image,
    listed,
    passed_over,
    subfolders,
    text,
)
from mae_jax.data.sources.protocol import Example
from mae_jax.data.sources.splits import EVAL_SPLITS, TRAIN_SPLITS, NoSplit, choose_held_out
from mae_jax.errors import UserError, counted
from mae_jax.files.buckets import is_remote
from mae_jax.files.limits import read_bytes, reason
from mae_jax.files.paths import similar_path


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FolderSource:
    """Image files below a root folder.

    Attributes:
      root: the folder.
      files: their paths relative to it, in the order of the examples.
      labels: int [N], or None where there are none.
      class_names: the name of each class, in the order of the labels.
      reading: what was read, such as '600 images, 10 classes', and remarks on what was not.

    Raises (from an item):
      BadImage: the file cannot be read, or is larger than `MAX_IMAGE_BYTES`.
    """

    root: str
    files: list[str]
    labels: np.ndarray | None
    class_names: list[str]
    reading: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def identity(self) -> str:
        return content_identity('folder', len(self), os.fsencode('\0'.join(self.files)))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        name = os.path.join(self.root, self.files[index])
        image = read_file(name)
        label = -1 if self.labels is None else int(self.labels[index])
        return {'image': image, 'label': label, 'name': name}


def read_file(name: str) -> bytes:
    """Returns the bytes of a file of an example.

    Raises:
      BadImage: it cannot be read, or is larger than `MAX_IMAGE_BYTES`.
    """
    try:
        return read_bytes(name, MAX_IMAGE_BYTES)
    except OSError as error:
        raise BadImage(f'{name} cannot be read: {reason(error)}.') from error


def folder_source(
    split: str, *, path: str | None, held_out_share: float | None = None, **unused
) -> FolderSource:
    """Returns the images in `path/<split>/<class>/`, `path/<split>/`, `path/<class>/`, or `path`.

    The names of splits are those of `TRAIN_SPLITS` and `EVAL_SPLITS`, in capitals too. Where `path`
    has no split, the folders in it are classes, if there are several and no image lies beside them;
    else its images have no labels. Where it has no evaluation split, `choose_held_out` keeps some
    for evaluation, by a hash of their names, and training leaves them out. Hidden files are
    ignored; `FolderSource.reading` counts files of other kinds.

    Args:
      split: 'train', an evaluation split under any of its names, or the name of a folder.
      path: the root folder.
      held_out_share: as of `choose_held_out`.
      unused: what `make_source` passes to every factory.

    Raises:
      UserError: the folder or the split does not exist or has no images, or images lie beside class
        folders.
    """
    check_root('folder', path)
    train = find_split(path, TRAIN_SPLITS)
    held_out = find_split(path, (split, *EVAL_SPLITS) if split in EVAL_SPLITS else EVAL_SPLITS)
    if split not in ('train', *EVAL_SPLITS):
        return _read_split(os.path.normpath(os.path.join(path, split)), f' in {split}/')
    if held_out and not train:
        if split == 'train':
            raise NoSplit(f'{path} has {_place(held_out)} but no train/.')
        return _read_split(held_out, f' in {_place(held_out)}')
    if not train:
        source = read_tree(path)
        return _hold_out(source, split != 'train', held_out_share, source.labels)
    unread = [f'{name}/' for name in subfolders(path)]
    unread = [name for name in unread if name not in map(_place, filter(None, (train, held_out)))]
    remarks = (f'not read: {listed(unread)}',) if unread else ()
    if not held_out:
        source = _read_split(train, f' in {_place(train)}', remarks)
        labels = source.labels if held_out_share is None else None
        return _hold_out(source, split != 'train', held_out_share, labels)
    if split == 'train':
        return _read_split(train, f' in {_place(train)}')
    place = f' held out in {_place(held_out)}'
    return _read_split(held_out, place, remarks, classes=subfolders(train))


def check_root(name: str, path: str | None) -> None:
    """Raises a UserError unless a data set's root is a folder on a disk."""
    if not path:
        raise UserError(f'dataset.name={name!r} needs dataset.path, the folder of the images.')
    if is_remote(path):
        raise UserError(
            f'dataset.path={path!r} is not a folder on a disk: '
            + (
                'write the images as shards with `mae-jax prepare`, copy these there, and give '
                'dataset.name=prepared.'
                if name == 'folder'
                else 'copy it to one.'
            )
        )
    if not os.path.isdir(path):
        raise UserError(f'dataset.path={path!r} is not a folder{similar_path(path) or "."}')


def _read_split(
    folder: str,
    place: str,
    remarks: tuple[str, ...] = (),
    classes: Sequence[str] | None = None,
) -> FolderSource:
    """Reads one split.

    Args:
      folder: its folder.
      place, remarks: for `FolderSource.reading`.
      classes: the class folders of the training split, for an evaluation split. It may lack some of
        them: a label means the same class in both.
    """
    if not os.path.isdir(folder):
        root, split = os.path.split(folder)
        existing = ', '.join(subfolders(root)) or 'no folder'
        raise UserError(f'{root} has no split {split!r}; it has {existing}.')
    own = subfolders(folder)
    if not own:
        return _read_flat(folder, place, remarks)
    loose = [name for name in os.listdir(folder) if is_image(name)]
    if loose:
        raise UserError(
            f'{folder} has images ({loose[0]}, ...) beside its class folders; '
            'move them into a class folder, or the class folders away.'
        )
    images, others = {}, collections.Counter()
    for name in own:
        images[name], rest = images_below(folder, name)
        others += rest
    present = [name for name in own if images[name]]
    if not present:
        raise _no_image(folder, others)
    names = own if classes is None else list(classes)
    if not set(present) <= set(names):
        names = present  # the task compares them with those of training, if it needs labels
    files = [file for name in present for file in images[name]]
    labels = np.repeat([names.index(n) for n in present], [len(images[n]) for n in present])
    lacking = [name for name in names if not images.get(name)]
    if lacking:
        remarks = (f'none of {listed(lacking)}', *remarks)
    reading = (_counted(files, names, place), *passed_over(others), *remarks)
    return FolderSource(folder, files, labels.astype(np.int32), list(map(text, names)), reading)


def _read_flat(folder: str, place: str = '', remarks: tuple[str, ...] = ()) -> FolderSource:
    files, others = images_below(folder, '')
    if not files:
        raise _no_image(folder, others)
    reading = (_counted(files, [], place), *passed_over(others), *remarks)
    return FolderSource(folder, files, None, [], reading)


def _counted(files: Sequence[str], classes: Sequence[str], place: str) -> str:
    return f'{counted(len(files), "image")}{place}, {counted(len(classes), "class")}'


def read_tree(path: str, splits: Sequence[str] = ()) -> FolderSource:
    """Reads all images below a folder; the folders in it are their classes, if all lie in several.

    Args:
      path: the folder.
      splits: names of folders that are no classes: the folders in them are.
    """
    source = _read_flat(path)
    folders = [name.split(os.sep)[:-1] for name in source.files]
    folders = [names[1:] if names and names[0].lower() in splits else names for names in folders]
    tops = [names[0] if names else '' for names in folders]
    classes = sorted(set(tops), key=os.fsencode)
    remarks = source.reading[1:]
    split = next((f for f in source.files if 'train' in f.lower().split(os.sep)[1:-1]), None)
    if split:
        remarks += (
            f'there is a train/ in {text(os.path.dirname(split))}: to use it, set dataset.path to '
            'the folder that contains it',
        )
    if '' in classes and len(classes) > 2:
        remarks += (f'{text(source.files[tops.index("")])} and others lie beside the folders',)
    if '' in classes or len(classes) < 2:
        return dataclasses.replace(source, reading=(source.reading[0], *remarks))
    # In the order of the files, as when this layout was read without labels: runs can go on.
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[name] for name in tops], np.int32)
    reading = (_counted(source.files, classes, ''), *remarks)
    return FolderSource(path, source.files, labels, list(map(text, classes)), reading)


def _hold_out(
    source: FolderSource, evaluation: bool, share: float | None, labels: np.ndarray | None
) -> FolderSource:
    """Returns the training or the evaluation images of a source that has no split of its own."""
    held_out = choose_by_name(source.files, labels, share)
    keep = np.flatnonzero(held_out == evaluation)
    if not len(keep):
        raise UserError(f'{source.root} has one image only: too few to keep one for evaluation.')
    files = [source.files[i] for i in keep]
    labels = None if source.labels is None else source.labels[keep]
    count, *remarks = source.reading
    reading = () if evaluation else (f'{count}, {held_out.sum():,} held out (no val/)', *remarks)
    return FolderSource(source.root, files, labels, source.class_names, reading)


def choose_by_name(
    files: Sequence[str], labels: np.ndarray | None, share: float | None
) -> np.ndarray:
    """Chooses the files that are held out, by a hash of their names; see `choose_held_out`.

    A share of .05 chooses what earlier versions did, which had no rule: their runs go on.
    """
    hashes = np.array([zlib.crc32(os.fsencode(name)) for name in files])
    keys = (hashes % 20 + hashes / 2**32) / 20  # below .05 where the hash is a multiple of 20
    return choose_held_out(keys, labels, share, order=hashes)


def _no_image(folder: str, others: collections.Counter) -> UserError:
    return UserError(
        f'{"; ".join((f"{folder} has no image in it", *passed_over(others)))}; images are files '
        f'that end in {", ".join(EXTENSIONS)}.'
    )


def _place(folder: str) -> str:
    return f'{os.path.basename(folder)}/'
