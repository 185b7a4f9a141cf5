"""Folders of images and of their masks, paired by the names of the files."""

import collections
import dataclasses
import functools
import os
import struct
from collections.abc import Sequence

import numpy as np

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.limits import check_pixels
from mae_jax.data.images.masks import read_mask
from mae_jax.data.sources.classes import palette_colours, read_classes, voc_colours
from mae_jax.data.sources.folder import check_root, choose_by_name, read_file
from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.listing import (
    find_split,
    images_below,
    listed,
    passed_over,
    subfolders,
    text,
)
from mae_jax.data.sources.protocol import PairedExample
from mae_jax.data.sources.splits import EVAL_SPLITS, TRAIN_SPLITS, NoSplit
from mae_jax.errors import UserError, counted
from mae_jax.files.limits import reason

IMAGES, MASKS = ('images',), ('annotations', 'masks', 'labels')
CLASSES = 'classes.txt'
PNG_HEADER = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR'
SAMPLE = 50
"""Masks that are looked at to suggest the number of classes."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PairedFolders:
    """Image files and their masks below a root folder.

    Attributes:
      root: the folder.
      images, masks: paths relative to it, a mask for each image.
      class_names: the name of each class, in the order of their numbers.
      class_colours: uint8 [num_classes, 3].
      reading: what was read, such as '367 pairs in train/, 11 classes'.

    Raises (from an item):
      BadImage: a file cannot be read, or is larger than `MAX_IMAGE_BYTES`.
    """

    root: str
    images: list[str]
    masks: list[str]
    class_names: list[str]
    class_colours: np.ndarray
    reading: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def identity(self) -> str:
        names = os.fsencode('\0'.join((*self.images, *self.masks)))
        return content_identity('paired_folders', len(self), names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PairedExample:
        image, mask = (os.path.join(self.root, each[index]) for each in (self.images, self.masks))
        content = {'image': read_file(image), 'mask': read_file(mask)}
        return {**content, 'mask_name': mask, 'label': -1, 'name': image}

    def mask_size(self, index: int) -> tuple[int, int]:
        """Returns (height, width) of a mask in pixels, of a PNG from the start of its file alone.

        Raises:
          BadImage: as for an item.
        """
        name = os.path.join(self.root, self.masks[index])
        try:
            with open(name, 'rb') as file:
                start = file.read(24)
        except OSError as error:
            raise BadImage(f'{name} cannot be read: {reason(error)}.') from error
        if start.startswith(PNG_HEADER) and len(start) == 24:
            width, height = struct.unpack('>II', start[16:])
            try:
                check_pixels(width, height)
            except ValueError as error:
                raise BadImage(f'{name} cannot be read as a mask: {error}.') from error
            return height, width
        return read_mask(read_file(name), name).shape


def paired_folders(
    split: str,
    *,
    path: str | None,
    num_classes: int | None = None,
    classes: str | None = None,
    reduce_zero_label: bool = False,
    held_out_share: float | None = None,
    **unused,
) -> PairedFolders:
    """Returns the pairs in `path/images/<split>/` and `path/annotations/<split>/`.

    The masks may be in masks/ or labels/ too. A pair has one name but for the suffix, in the same
    place below both folders. The names of splits are those of `TRAIN_SPLITS` and `EVAL_SPLITS`, in
    capitals too. Where there is no evaluation split, or no split at all, some pairs are held out by
    a hash of their names.

    Args:
      split: 'train', an evaluation split under any of its names, or the name of a folder.
      path: the root folder.
      num_classes: of the masks; None counts the names of classes.
      classes: a file as of `read_classes`; None is `path/classes.txt`, if it exists. Colours that
        it lacks are those of the first mask's palette, or those of PASCAL VOC.
      reduce_zero_label: the first class has the value 1.
      held_out_share: as of `choose_held_out`.
      unused: what `make_source` passes to every factory.

    Raises:
      UserError: a folder or split is missing, an image has no mask, a mask has no image, or the
        number of classes is not known.
    """
    check_root('paired_folders', path)
    images, masks = (find_split(path, names) for names in (IMAGES, MASKS))
    if not images or not masks:
        there = ', '.join(f'{name}/' for name in subfolders(path)) or 'no folder'
        raise UserError(
            f'{path} needs the folders images/ and annotations/ and has {there}: '
            'dataset.path must be the folder that holds both.'
        )
    folder, is_shared = _split_folder(images, split)
    place, other = (os.path.join(os.path.basename(each), folder) for each in (images, masks))
    pairs, others = _pairs(path, place.rstrip(os.sep), other.rstrip(os.sep))
    place = os.path.join(place, '')
    kept, about = pairs, f'{"" if split == "train" else " held out"} in {place}'
    if is_shared:
        held_out = choose_by_name([image for image, _ in pairs], None, held_out_share)
        kept = [pairs[i] for i in np.flatnonzero(held_out == (split != 'train'))]
        about = f' in {place}, {held_out.sum():,} held out (no val/)'
        if not kept:
            raise UserError(f'{path} has one pair only: too few to keep one for evaluation.')
    names, colours, origin = _classes(path, kept, num_classes, classes, reduce_zero_label)
    reading = f'{counted(len(pairs), "pair")}{about}, {counted(len(names), "class")}{origin}'
    remarks = (reading, *passed_over(others), *_unread(images, folder, is_shared, split))
    if is_shared and split != 'train':  # training has printed them
        remarks = ()
    return PairedFolders(path, *map(list, zip(*kept, strict=True)), names, colours, remarks)


def _split_folder(images: str, split: str) -> tuple[str, bool]:
    """Returns the folder of a split in images/, and whether both splits are taken from it."""
    train = find_split(images, TRAIN_SPLITS)
    held_out = find_split(images, (split, *EVAL_SPLITS) if split in EVAL_SPLITS else EVAL_SPLITS)
    if split not in ('train', *EVAL_SPLITS):
        if split not in (present := subfolders(images)):
            raise UserError(f'{images} has no split {split!r}; it has {listed(present)}.')
        return split, False
    if held_out and not train and split == 'train':
        raise NoSplit(f'{images} has {os.path.basename(held_out)}/ but no train/.')
    folder = held_out if held_out and split != 'train' else train
    return os.path.basename(folder or ''), not held_out


def _unread(images: str, folder: str, is_shared: bool, split: str) -> tuple[str, ...]:
    """Describes, once for both splits, the folders in images/ that are read for neither."""
    if not folder or (split == 'train') != is_shared:
        return ()
    used = {folder, os.path.basename(find_split(images, TRAIN_SPLITS) or '')}
    unread = [f'{name}/' for name in subfolders(images) if name not in used]
    return (f'not read: {listed(unread)}',) if unread else ()


def _pairs(root: str, images: str, masks: str) -> tuple[list[tuple[str, str]], collections.Counter]:
    """Finds the pairs in two folders.

    Args:
      root: of all paths.
      images, masks: the folders, relative to it.

    Returns:
      ((image, mask), relative to the root, in the order of the images' names; how many other files
      there are of each suffix)
    """
    if not os.path.isdir(os.path.join(root, masks)):
        raise UserError(f'{root} has {images} and no {masks}: a split needs both folders.')
    (of_images, others), (of_masks, more) = _by_stem(root, images), _by_stem(root, masks)
    if not of_images:
        raise UserError(f'{os.path.join(root, images)} has no image in it.')
    for files, partners, kinds, place in (
        (of_images, of_masks, ('image', 'mask'), masks),
        (of_masks, of_images, ('mask', 'image'), images),
    ):
        if alone := [stem for stem in files if stem not in partners]:
            raise UserError(
                f'{os.path.join(root, text(files[alone[0]]))} has no {kinds[1]} in {place}, one '
                f'of {len(alone):,} such among {counted(len(files), kinds[0])}: an image and its '
                'mask need the same name but for the suffix.'
            )
    return [(image, of_masks[stem]) for stem, image in of_images.items()], others + more


def _by_stem(root: str, folder: str) -> tuple[dict[str, str], collections.Counter]:
    """Returns the images below a folder, path in it without suffix -> path, and other files."""
    names, others = images_below(root, folder)
    files = {}
    for name in names:
        stem = os.path.splitext(os.path.relpath(name, folder))[0]
        if stem in files:
            raise UserError(
                f'{os.path.join(root, text(files[stem]))} and {text(os.path.basename(name))} have '
                'the same name but for the suffix: remove one of them.'
            )
        files[stem] = name
    return files, others


def _classes(
    root: str,
    pairs: Sequence[tuple[str, str]],
    num_classes: int | None,
    file: str | None,
    reduce_zero_label: bool,
) -> tuple[list[str], np.ndarray, str]:
    """Returns names and colours of the classes, and where they come from."""
    default = os.path.join(root, CLASSES)
    path = file or (default if os.path.exists(default) else None)
    names, colours = read_classes(path) if path else ([], None)
    if path and num_classes not in (None, len(names)):
        raise UserError(
            f'num_classes={num_classes}, but {path} names {len(names)} classes: leave num_classes '
            'unset to count them, or correct the file.'
        )
    origins = [f'named in {os.path.basename(path)}'] if path else []
    count = num_classes or len(names)
    if not count:
        raise UserError(
            f'num_classes is unset and {root} has no {CLASSES}: set num_classes (the largest value '
            f'of a pixel in {counted(min(SAMPLE, len(pairs)), "mask")} is '
            f'{_largest(root, pairs)}), or name a class a line in {default}.'
        )
    if colours is None:
        mask = os.path.join(root, pairs[0][1])
        colours = palette_colours(read_file(mask), int(reduce_zero_label), count)
        origins += ['colours of the palette'] if colours is not None else []
    names = names or [str(number) for number in range(count)]
    colours = voc_colours(count) if colours is None else colours
    return names, colours, f' ({", ".join(origins)})' if origins else ''


def _largest(root: str, pairs: Sequence[tuple[str, str]]) -> int:
    """Returns the largest value of some masks, evenly spread, 255 left out."""
    largest = 0
    for number in range(min(SAMPLE, len(pairs))):
        name = os.path.join(root, pairs[number * len(pairs) // min(SAMPLE, len(pairs))][1])
        values = read_mask(read_file(name), name)
        largest = max(largest, int(values[values != 255].max(initial=0)))
    return largest
