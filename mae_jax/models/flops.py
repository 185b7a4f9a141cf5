"""Counts the floating-point operations of matrix products, in a forward pass of one image."""

from collections.abc import Iterable

from mae_jax.models.options import EncoderOptions


def blocks_flops(depth: int, width: int, tokens: int) -> float:
    """Counts those of blocks whose attention is over all tokens."""
    return depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


def encoder_flops(
    blocks: Iterable[int], width: int, grid: tuple[int, int], options: EncoderOptions
) -> float:
    """Counts those of an encoder's blocks of these numbers, for all patches of a grid."""
    tokens = grid[0] * grid[1] + options.cls_token
    total = 0.0
    for side in map(options.window_of, blocks):
        if side:
            windows = -(-grid[0] // side) * -(-grid[1] // side)
            attended = windows * side**2  # padding included
            total += 16.0 * tokens * width**2 + attended * (8.0 * width**2 + 4.0 * side**2 * width)
        else:
            total += blocks_flops(1, width, tokens)
    return total
