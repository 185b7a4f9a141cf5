"""The sets of images on which robustness is measured: what they are, and how they are opened."""

import collections
import dataclasses
import itertools
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.data import make_source_of
from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.sources.listing import is_image, listed, subfolders
from mae_jax.data.sources.make import make_source
from mae_jax.data.sources.protocol import Source
from mae_jax.data.transforms.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    CorruptedSource,
    canvas_size,
    corruption_functions,
)
from mae_jax.errors import UserError, counted
from mae_jax.evaluation.robustness import IMAGENET_CLASSES

MODELS = ('ViT-B', 'ViT-L', 'ViT-H', 'ViT-H, 448 px', 'best before')
"""Of which the paper has figures."""


class Kind(NamedTuple):
    """A kind of set."""

    title: str
    paper: tuple[float, ...] = ()
    """The paper's figures in percent, one for each of `MODELS`."""
    classes: int | None = None
    """How many classes its images are of; None for any number."""
    alone: bool = False
    """Whether an argmax is over these classes alone."""


KINDS = {
    'imagenet_a': Kind('ImageNet-A', (35.9, 57.1, 68.2, 76.7, 35.8), 200, alone=True),
    'imagenet_r': Kind('ImageNet-R', (48.3, 59.9, 64.4, 66.5, 48.7), 200, alone=True),
    'imagenet_sketch': Kind(
        'ImageNet-Sketch', (34.5, 45.3, 49.6, 50.9, 36.0), classes=IMAGENET_CLASSES
    ),
    'imagenet_c': Kind('ImageNet-C', (51.7, 41.8, 33.8, 36.8, 42.5)),
    'corruptions': Kind('Corrupted images'),
}
"""By the argument of configs/robustness.py. The figures of ImageNet-C are mCE, others top-1."""

ALL, CLEAN = 'all', 'clean'
"""Names of sets that have no corruption."""
CORRUPTION_GROUPS = ('', 'noise', 'blur', 'weather', 'digital')
"""Folders that the official archives of ImageNet-C may have been extracted to."""
ONLY_IN_R, ONLY_IN_A = 'n01443537', 'n01558993'
"""The goldfish is a class of ImageNet-R and not of -A, the robin of -A and not of -R."""


def find_kind(folder: str) -> str:
    """Returns the kind of set that a folder looks like; 'corruptions' for images of one's own."""
    if not os.path.isdir(folder):
        return 'corruptions'  # what opens it has a message
    if corruption_folders(folder):
        return 'imagenet_c'
    classes = subfolders(folder)
    if len(classes) == KINDS['imagenet_r'].classes and ONLY_IN_R in classes:
        return 'imagenet_r'
    if len(classes) == KINDS['imagenet_a'].classes and ONLY_IN_A in classes:
        return 'imagenet_a'
    if len(classes) == IMAGENET_CLASSES:
        images = filter(is_image, os.listdir(os.path.join(folder, classes[0])))
        if next(images, '').startswith('sketch_'):
            return 'imagenet_sketch'
    return 'corruptions'


def open_sets(config: ConfigDict, own: Source | None = None) -> dict[str, Source]:
    """Opens all sets of images of a config: name, such as 'snow/3', -> source.

    Args:
      config: of the task 'robustness', with an image size.
      own: the images that are to be corrupted, if they were passed from Python.

    Raises:
      UserError: something is missing, or is not what its kind has.
    """
    name = config.robustness.kind
    if name not in KINDS:
        raise UserError(f'robustness.kind={name!r} is unknown: choose {" | ".join(KINDS)}.')
    if own is not None and name != 'corruptions':
        raise UserError(f'images from Python are not {KINDS[name].title}: leave them out.')
    if name == 'imagenet_c':
        return open_imagenet_c(config.dataset)
    source = make_source_of(config, config.dataset.eval_split) if own is None else own
    if not source.num_classes:
        raise UserError(
            f'the images of {config.dataset.path or config.dataset.name} have no labels: put those '
            'of each class into a folder of its name.'
        )
    if name == 'corruptions':
        return corrupted_sets(source, config)
    return {ALL: source}


def classes_alone(source: Source, kind: Kind, where: str) -> list[int] | None:
    """Returns the labels over which alone an argmax is for a kind of set; None for all.

    Args:
      source: whose images are all read where its labels are not listed.
      kind: of the set.
      where: the set, for messages.

    Raises:
      UserError: there are images of more or fewer classes than the kind has.
    """
    if kind.classes is None:
        return None
    labels = getattr(source, 'labels', None)
    if labels is None:
        labels = [source[index]['label'] for index in range(len(source))]
    present = np.unique(labels)
    if len(present) != kind.classes:
        raise UserError(
            f'{where} has images of {counted(len(present), "class")}, and {kind.title} of '
            f'{kind.classes:,}: extract it again, or give another --kind.'
        )
    return present.tolist() if kind.alone else None


def corruption_folders(root: str) -> dict[str, str]:
    """Finds the folders of the corruptions of ImageNet-C: name of a corruption -> path."""
    paths = {}
    for corruption in CORRUPTIONS:
        for group in CORRUPTION_GROUPS:
            path = os.path.join(root, group, corruption)
            if os.path.isdir(path):
                paths[corruption] = path
                break
    return paths


def open_imagenet_c(dataset: ConfigDict) -> dict[str, FolderSource]:
    """Opens <corruption>/<severity>/<class>/ of all corruptions and severities.

    Raises:
      UserError: one of them is missing, or has fewer images than others.
    """
    root = dataset.path
    if dataset.name != 'folder' or not root or not os.path.isdir(root):
        raise UserError(
            f'ImageNet-C is read from folders, and dataset.path={root!r} is none: give the '
            'place of its extracted archives.'
        )
    folders = corruption_folders(root)
    missing = [name for name in CORRUPTIONS if name not in folders]
    missing += [
        f'{corruption}/{severity}'
        for corruption, folder in folders.items()
        for severity in SEVERITIES
        if not os.path.isdir(os.path.join(folder, str(severity)))
    ]
    if missing:
        names = ', '.join(missing[:15]) + (', ...' if len(missing) > 15 else '')
        raise UserError(
            f'{root} has no {names}: it needs <corruption>/<severity>/<class>/ of '
            f'{len(CORRUPTIONS)} corruptions and the severities 1 to {len(SEVERITIES)}.'
        )
    sources, first = {}, None
    for corruption, severity in itertools.product(CORRUPTIONS, SEVERITIES):
        source = make_source('folder', str(severity), path=folders[corruption])
        if not source.num_classes:
            raise UserError(f'{source.root} has no class folders: extract it again.')
        first = first or source
        files = first.files if source.files == first.files else source.files  # of 75, kept once
        sources[f'{corruption}/{severity}'] = dataclasses.replace(source, files=files)
    check_equal_sizes(root, sources)
    return sources


def check_equal_sizes(root: str, sources: Mapping[str, FolderSource]) -> None:
    """Raises a UserError that names the sets that lack images that others have."""
    counts = {
        name: collections.Counter(source.class_names[label] for label in source.labels)
        for name, source in sources.items()
    }
    fullest = max(counts.values(), key=collections.Counter.total)
    short = [name for name, each in counts.items() if each != fullest]
    if not short:
        return
    images, classes = _total(counts[short[0]])
    raise UserError(
        f'{root} is incomplete: {listed(short)} ({images} of {classes}) '
        f'{"differs" if len(short) == 1 else "differ"} from the others, which have '
        f'{" of ".join(_total(fullest))}: extract them again.'
    )


def _total(counts: collections.Counter) -> tuple[str, str]:
    return counted(counts.total(), 'image'), counted(len(counts), 'class')


def corrupted_sets(source: Source, config: ConfigDict) -> dict[str, CorruptedSource]:
    """Makes all corruptions at all severities of a source, and its clean images beside them.

    Both are cropped at 224 pixels first, as the images of ImageNet-C, so that only the corruption
    differs.

    Raises:
      UserError: corruptions are not defined for such images, or their package is not installed.
    """
    data = config.dataset
    if data.channels not in (1, 3) or data.scale != 255 or data.bands or data.nodata is not None:
        raise UserError(
            f'corruptions are defined for 8-bit images, grey or RGB, and not for dataset.channels='
            f'{data.channels}, .scale={data.scale:g}, .bands={data.bands}, .nodata={data.nodata}.'
        )
    corruption_functions()
    clean = CorruptedSource(
        source,
        canvas_size(tuple(config.image_size)),
        data.channels,
        seed=config.seed,
        crop_share=data.eval_crop_share,
        apply_exif=data.apply_exif,
    )
    return {CLEAN: clean} | {
        f'{corruption}/{severity}': dataclasses.replace(
            clean, corruption=corruption, severity=severity
        )
        for corruption in CORRUPTIONS
        for severity in SEVERITIES
    }
