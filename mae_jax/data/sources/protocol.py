"""The interface of a data set: random access to its examples."""

from collections.abc import Sequence
from typing import NotRequired, Protocol, TypedDict

import numpy as np


class Example(TypedDict):
    """One example of a source."""

    image: bytes | np.ndarray
    """The bytes of an image file, or an array [H, W, C] of any integer or float dtype."""
    label: int
    """The index of its class in `class_names`; -1 where there is none."""
    name: str
    """What messages call the example, such as the path of its file."""


class PairedExample(Example):
    """One example of a source for segmentation."""

    mask: bytes | np.ndarray
    """The bytes of an image file of one band, or integers [H, W]: the class of each pixel."""
    mask_name: NotRequired[str]
    """What messages call the mask."""


class InstanceExample(Example):
    """One example of a source for detection, with the objects on which it is trained."""

    boxes: np.ndarray
    """Float [n, 4]: x0, y0, x1, y1 in pixels of the image; pixel i covers i to i + 1."""
    classes: np.ndarray
    """Integers [n], counted from 0."""
    outlines: Sequence
    """Of each object: polygons, a list of floats [k, 2] of corners (x, y); a mask [H, W]; COCO's
    uncompressed runs; or None for the whole box."""
    size: NotRequired[tuple[int, int]]
    """(height, width) of the image that boxes and outlines are of; another one is refused."""


class Source(Protocol):
    """One split of a data set.

    The loader calls `source[index]` from several threads at once; each worker process gets a
    pickled copy, whose arrays are read-only and shared by all. A source that cannot be pickled is
    read by threads alone, unless `dataset.workers` asks for processes. An image that cannot
    be read raises `mae_jax.data.images.decode.BadImage`, which `dataset.on_error` handles.

    Attributes:
      num_classes: how many classes the labels are of; 0 where there are no labels.
      class_names: the name of each class, in the order of the labels; may be empty.
      identity: a short text that differs between data sets, splits and orders of examples. A run
        stores it and refuses to resume with another one.
    """

    num_classes: int
    class_names: Sequence[str]
    identity: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...
