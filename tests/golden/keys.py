"""What checkpoints of other libraries hold: the name and shape of every tensor.

The lists are in `keys/`, made by `make_keys.py`, a tensor a line: its name, then its shape.
Numbered blocks share a line, as in `blocks.{0..11}.norm1.weight 768`. NumPy alone.
"""

import math
import re
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / 'keys'
_RANGE = re.compile(r'\{0\.\.(\d+)\}')


def names() -> list[str]:
    """Every list there is, such as 'official_full_base'."""
    return sorted(path.stem for path in FOLDER.glob('*.txt'))


def read(name: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, of every tensor of a checkpoint; () is a scalar's."""
    shapes = {}
    for line in (FOLDER / f'{name}.txt').read_text().splitlines():
        if not line.startswith('#'):
            tensor, *shape = line.split()
            shapes |= dict.fromkeys(_expand(tensor), tuple(map(int, shape)))
    return shapes


def compress(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The lines that `read` expands to these shapes, in their order."""
    numbers = {}
    for tensor, shape in shapes.items():
        block = re.search(r'(?:blocks\.|layers?\.|encoderblock_)(\d+)(?=[./])', tensor)
        if block:
            template = f'{tensor[: block.start(1)]}%s{tensor[block.end(1) :]}'
            numbers.setdefault((template, shape), []).append(int(block[1]))
        else:
            numbers[tensor, shape] = []
    lines = []
    for (tensor, shape), actual in numbers.items():
        if actual:
            assert actual == list(range(len(actual))), (tensor, actual)
            tensor = tensor % f'{{0..{actual[-1]}}}'
        lines.append(' '.join([tensor, *map(str, shape)]))
    return lines


def tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A tensor for every name, no two alike, read-only, of random bits that are finite: float32 of
    magnitudes 2**-63 to 2, int64 for a BatchNorm's count.

    All are windows on one array, each from a place of its own, so ViT-Huge takes no time.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    places = np.random.RandomState(seed).permutation(1 << 20)[: len(sizes)]
    bits = np.random.SFC64(seed).random_raw((max(sizes) + (1 << 20)) // 2).view(np.uint32)
    bits &= np.uint32(0xBFFFFFFF)  # an exponent below 128: neither infinite nor NaN
    bits |= np.uint32(0x20000000)  # and at least 64: not subnormal, which some take for 0
    bits.setflags(write=False)
    made = {}
    for (name, shape), size, place in zip(shapes.items(), sizes, places, strict=True):
        tensor = bits[place : place + size].reshape(shape)
        count = name.endswith('num_batches_tracked')
        made[name] = tensor.astype(np.int64) if count else tensor.view(np.float32)
    return made


def _expand(tensor: str) -> list[str]:
    last = _RANGE.search(tensor)
    if last is None:
        return [tensor]
    return [_RANGE.sub(str(i), tensor) for i in range(int(last[1]) + 1)]
