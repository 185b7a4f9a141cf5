"""Images with the boxes and outlines of the objects in them, as COCO's JSON describes them."""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from mae_jax.data.sources.coco_json import Annotations, read_annotations
from mae_jax.data.sources.coco_layout import find_annotations, find_images
from mae_jax.data.sources.coco_truth import ground_truth
from mae_jax.data.sources.folder import check_root, choose_by_name, read_file
from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.outlines import Outlines
from mae_jax.data.sources.protocol import InstanceExample
from mae_jax.errors import UserError, counted


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CocoSource:
    """Image files below a root folder, and the objects in them on which a detector is trained.

    Attributes:
      root: the folder.
      files: their paths relative to it, in the order of the images' ids.
      annotations: the file of annotations.
      image_ids, category_ids: of images, and of the classes, in its words.
      class_names: the name of each class.
      sizes: (height, width) of the images in pixels.
      starts: objects of image i are starts[i] to starts[i + 1] of the next three.
      boxes: (x0, y0, x1, y1) in pixels, within the image and not empty.
      classes: of the objects, counted from 0 in the order of the categories' ids.
      outlines: polygons or runs of the objects.
      reading: what was read, such as '300 images, 3 classes, 812 instances', and what was left out.

    Raises (from an item):
      BadImage: the file cannot be read, or is larger than `MAX_IMAGE_BYTES`.
    """

    root: str
    files: list[str]
    annotations: str
    image_ids: Int[np.ndarray, ' I']
    category_ids: Int[np.ndarray, ' K']
    class_names: list[str]
    sizes: Int[np.ndarray, 'I 2']
    starts: Int[np.ndarray, ' I+1']
    boxes: Float32[np.ndarray, 'N 4']
    classes: Int[np.ndarray, ' N']
    outlines: Outlines
    reading: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def identity(self) -> str:
        names = os.fsencode('\0'.join((*self.files, '', *self.class_names)))
        each = self.outlines
        arrays = (self.image_ids, self.category_ids, self.starts, self.boxes, self.classes)
        outlines = (each.polygons, each.runs, each.points, each.counts)
        contents = map(np.ascontiguousarray, (*arrays, *outlines))
        return content_identity('coco', len(self), names, *contents)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> InstanceExample:
        name = os.path.join(self.root, self.files[index])
        rows = range(self.starts[index], self.starts[index + 1])
        return {
            'image': read_file(name),
            'label': -1,
            'name': name,
            'size': tuple(map(int, self.sizes[index])),
            'boxes': self.boxes[rows.start : rows.stop],
            'classes': self.classes[rows.start : rows.stop],
            'outlines': [self.outlines[row] for row in rows],
        }

    def ground_truth(self) -> dict[str, Any]:
        """Reads the file again, for these images: what `pycocotools.coco.COCO` has as `dataset`.

        Crowds and all else that training leaves out are in it.
        """
        return ground_truth(self.annotations, self.image_ids)


def coco_source(
    split: str,
    *,
    path: str | None,
    annotations: str | None = None,
    max_boxes: int | None = None,
    held_out_share: float | None = None,
    **unused,
) -> CocoSource:
    """Returns a split of images that a JSON file in COCO's format describes.

    `coco_layout.py` lists the layouts. Where there is no file for evaluation, some images are held
    out by a hash of their names. Crowds, empty boxes and masks of no area are left out: of a
    detector's evaluation they are a part, see `CocoSource.ground_truth`.

    Args:
      split: 'train', an evaluation split under any of its names, or what a file is named by.
      path: the root folder.
      annotations: a file, relative to the root, in whose name '{split}' stands for the split; None
        to look for one.
      max_boxes: how many objects of an image are used in training, which `reading` mentions.
      held_out_share: as of `choose_held_out`.
      unused: what `make_source` passes to every factory.

    Raises:
      UserError: pycocotools is not installed, a folder, file or split is missing, an image is not
        where the file has it, or as of `read_annotations`.
    """
    check_root('coco', path)
    if importlib.util.find_spec('pycocotools') is None:
        raise UserError(
            "dataset.name='coco' needs pycocotools: `pip install 'mae_jax[detect]'` installs it."
        )
    file, is_shared = find_annotations(path, annotations, split)
    content = read_annotations(file)
    folder, files = find_images(path, file, content.names)
    training = split.startswith('train')
    kept, about = np.arange(len(files)), '' if training else ' held out'
    if is_shared:
        held_out = choose_by_name(files, None, held_out_share)
        kept, about = np.flatnonzero(held_out != training), f', {held_out.sum():,} held out'
        if not len(kept):
            raise UserError(f'{file} has one image only: too few to keep one for evaluation.')
    source, more = _select(content, folder, files, file, kept)
    remarks = ()
    if training or not is_shared:  # training has printed what both share
        place = os.path.relpath(file, path)
        counts = counted(len(files), 'image'), counted(source.num_classes, 'class')
        instances = counted(len(source.boxes), 'instance')
        remarks = (f'{counts[0]}{about} in {place}, {counts[1]}, {instances}',)
    if training:
        remarks = (', '.join((*remarks, *more)), *_crowded(source, max_boxes))
    return dataclasses.replace(source, reading=remarks)


def _select(
    content: Annotations, folder: str, files: Sequence[str], file: str, kept: Int[np.ndarray, ' n']
) -> tuple[CocoSource, list[str]]:
    """Returns the source of some images, and remarks on their annotations."""
    chosen = np.zeros(len(files), bool)
    chosen[kept] = True
    of_these = chosen[content.numbers]
    limits = np.tile(content.sizes[content.numbers][:, ::-1], 2)
    boxes = np.clip(content.boxes, 0, limits)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    flat = content.outlined & (content.outlines.areas() == 0)
    unused = content.crowds | empty | flat
    rows = np.flatnonzero(of_these & ~unused)
    counts = np.bincount(content.numbers[rows], minlength=len(files))[kept]
    source = CocoSource(
        folder,
        [files[i] for i in kept],
        file,
        content.image_ids[kept],
        content.category_ids,
        content.category_names,
        content.sizes[kept].astype(np.int32),
        np.concatenate([[0], np.cumsum(counts)]),
        boxes[rows].astype(np.float32),
        content.classes[rows].astype(np.int32),
        content.outlines.take(rows),
    )
    kinds = (content.crowds, 'crowd', ''), (empty, 'empty box', ''), (flat, 'mask', ' without area')
    remarks, seen = [], ~of_these
    for holds, noun, more in kinds:  # an object counts under the first kind that it is of
        if count := int((holds & ~seen).sum()):
            remarks.append(counted(count, noun) + more)
        seen = seen | holds
    remarks = [f'{_joined(remarks)} left out of training'] if remarks else []
    if content.unlisted:
        annotations = counted(content.unlisted, 'annotation')
        remarks.append(f'{annotations} of images that are not listed left out')
    if bare := int((~content.outlined[rows]).sum()):
        remarks.append(f'{counted(bare, "box")} without an outline, which is then that of the box')
    if without := int((counts == 0).sum()):
        remarks.append(f'{counted(without, "image")} without instances')
    return source, remarks


def _joined(texts: Sequence[str]) -> str:
    *first, last = texts
    return f'{", ".join(first)} and {last}' if first else last


def _crowded(source: CocoSource, max_boxes: int | None) -> tuple[str, ...]:
    """Describes images with more objects than are used."""
    counts = np.diff(source.starts)
    many = int((counts > max_boxes).sum()) if max_boxes else 0
    if not many:
        return ()
    have = 'has' if many == 1 else 'have'
    return (
        f'{counted(many, "image")} {have} more instances than dataset.max_boxes={max_boxes}, at '
        f'most {counts.max():,}: the largest ones are used',
    )
