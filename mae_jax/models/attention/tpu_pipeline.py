"""The order of a TPU kernel's program: which tile is at which stage when.

The compiler keeps to the order of the program where registers are short, and overlaps the products
of one tile with the softmax of another only if the program names them side by side.
"""

from collections.abc import Callable

import jax

from mae_jax.models.attention.tpu_tiles import Tiling

BODY = 420
"""Registers of logits, at most, that one iteration's program names if it has several windows."""
AHEAD = 4
"""Tiles by which a stage is ahead of the next."""


def each_window(tiles: Tiling, images: int, body: Callable[[list], None]) -> None:
    """Calls `body` with lists of (image, window), in a loop if one list would be too long."""
    total, registers = images * tiles.windows, len(tiles.tiles) * tiles.rows // 8
    counts = [n for n in range(1, total + 1) if total % n == 0 and n * registers <= BODY]
    count = max(counts, default=1)
    if count == total:
        return body([divmod(index, tiles.windows) for index in range(total)])

    def step(i, carry):
        indices = [i * count + place for place in range(count)]
        # Python's `//` of signed numbers would ask for the kind of device that traces it.
        body([(jax.lax.div(n, tiles.windows), jax.lax.rem(n, tiles.windows)) for n in indices])
        return carry

    jax.lax.fori_loop(0, total // count, step, None)


def run_stages(
    tiles: Tiling, places: list, load: Callable, stages: list[Callable], store: Callable
) -> None:
    """Runs the stages for each tile of each window, the first ones ahead of the last.

    Args:
      load: from (image, window) to a window's arrays.
      stages: each takes the arrays, a tile and what the stage before it returned.
      store: takes (image, window) and what the last stage returned for the window's tiles.
    """
    count = len(tiles.tiles)
    total = len(places) * count
    loaded, results = {}, {}
    for step in range(total + AHEAD * (len(stages) - 1)):
        for number, stage in enumerate(stages):
            index = step - number * AHEAD
            if not 0 <= index < total:
                continue
            window, tile = index // count, tiles.tiles[index % count]
            if number == 0 and tile.index == 0:
                loaded[window] = load(places[window])
            results[index] = stage(loaded[window], tile, results.get(index))
            if number == len(stages) - 1 and tile.index == count - 1:
                done = [results.pop(i) for i in range(index + 1 - count, index + 1)]
                store(places[window], done)
