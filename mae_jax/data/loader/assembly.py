"""Puts batches together from pieces, one for each device, while they fill.

A piece goes to its device as soon as its last image is loaded. Nothing joins the rows of a whole
batch on the host.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from mae_jax.data.loader.layout import REPLACED, Arrays
from mae_jax.data.loader.readers import Threads, Workers

POLL_S = 0.5
"""How often a waiting thread checks for the end of the stream and for dead workers, in seconds."""
MAX_CHUNK = 32
"""The most images of a task."""
CHUNKS = 4
"""Tasks of a batch for each loader, so that none waits long for the others."""


class Destination(Protocol):
    """Where the pieces of batches go.

    Attributes:
      pieces: of a batch; each has the same number of consecutive rows of this process.
    """

    pieces: int

    def put(self, number: int, rows: Arrays, lent: bool) -> Any:
        """Sends a piece to its place.

        Args:
          number: of the piece in its batch.
          rows: its arrays.
          lent: the memory of the arrays is used again after the call.
        """

    def join(self, pieces: list[Any]) -> dict[str, Any]:
        """Makes a batch of what `put` returned for its pieces."""


class OnHost:
    """Keeps batches as they are, in the memory of the host: a `Destination`."""

    pieces = 1

    def put(self, number: int, rows: Arrays, lent: bool) -> Arrays:
        return {name: array.copy() for name, array in rows.items()} if lent else rows

    def join(self, pieces: list[Arrays]) -> Arrays:
        return pieces[0]


ON_HOST = OnHost()


def put_whole(destination: Destination, arrays: Arrays) -> dict[str, Any]:
    """Sends a batch that is in memory already to its destination, and returns it from there."""
    parts = {name: np.split(rows, destination.pieces) for name, rows in arrays.items()}
    pieces = range(destination.pieces)
    return destination.join(
        [destination.put(i, {name: rows[i] for name, rows in parts.items()}, False) for i in pieces]
    )


class Loaded(NamedTuple):
    """A batch at its destination."""

    batch: dict[str, Any]
    replaced: int
    """How many of its rows are of another image than their own."""
    rows: int


@dataclasses.dataclass
class Piece:
    """A piece that is being filled.

    Attributes:
      slot: the part of the readers' memory that holds it.
      arrays: its rows.
      missing: how many of its images are not loaded.
      errors: by the first image of the task that raised them.
    """

    slot: int
    arrays: Arrays
    missing: int
    errors: dict[int, BaseException] = dataclasses.field(default_factory=dict)


def assemble(
    readers: Threads | Workers,
    destination: Destination,
    item: Callable[[int], Any],
    counts: range,
    *,
    images: int,
    slots: int,
    stop: threading.Event,
) -> Iterator[Loaded]:
    """Yields batches in order.

    Args:
      readers: that load the images.
      destination: of the pieces.
      item: count -> what the readers need to load that image.
      counts: of all images.
      images: of a piece.
      slots: how many pieces are filled at a time.
      stop: ends the iteration when it is set.

    Raises:
      The error of the first image in order that raised one, after the batches before it.
    """
    chunk = chunk_of(images, destination.pieces, readers.loaders)
    free, filling = collections.deque(range(slots)), {}
    tasks = collections.deque()
    last, opened, put, batch = len(counts) // images, 0, 0, []
    replaced = rows = 0
    while put < last and not stop.is_set():
        while free and opened < last:
            piece = Piece(slot := free.popleft(), readers.arrays(slot), images)
            filling[opened] = piece
            for first in range(0, images, chunk):
                part = counts[opened * images :][first : min(first + chunk, images)]
                tasks.append((opened, slot, piece.arrays, first, [item(count) for count in part]))
            opened += 1
        while tasks and readers.submit(*tasks[0]):
            tasks.popleft()
        if filling[put].missing == 0:
            piece = filling.pop(put)
            if piece.errors:
                raise piece.errors[min(piece.errors)]
            marks = piece.arrays.pop(REPLACED)
            replaced, rows = replaced + int(np.count_nonzero(marks)), rows + len(marks)
            place = put % destination.pieces
            batch.append(destination.put(place, piece.arrays, readers.lent))
            free.append(piece.slot)
            del piece
            put += 1
            if len(batch) == destination.pieces:
                yield Loaded(destination.join(batch), replaced, rows)
                batch, replaced, rows = [], 0, 0
        elif result := readers.result(POLL_S):
            piece = filling[result.number]
            piece.missing -= min(chunk, images - result.first)
            if result.error is not None:
                piece.errors[result.first] = result.error


def chunk_of(images: int, pieces: int, loaders: int) -> int:
    """Returns how many images a task has."""
    return max(1, min(MAX_CHUNK, images, images * pieces // (CHUNKS * loaders)))
