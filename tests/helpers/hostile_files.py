"""Files that are not what they say, or that would do harm. Each function writes one into a folder
and returns its path; if the code in it ever runs, it leaves a file `ran` in that folder.

`PTH` are those that look like PyTorch's, and need it to be written (a test is skipped without);
`OTHERS` need NumPy alone.
"""

import argparse
import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest


class Bomb:
    """Unpickling it runs code: it makes the file `ran`."""

    def __init__(self, folder: Path):
        self.code = f"open({str(folder / 'ran')!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.code,)


def pickle_that_runs_code(folder: Path) -> Path:
    """In place of the model, in today's zip format."""
    return _save(folder / 'bomb.pth', {'model': Bomb(folder)})


def legacy_pickle_that_runs_code(folder: Path) -> Path:
    """The same in the format before PyTorch 1.6."""
    return _save(folder / 'legacy_bomb.pth', {'model': Bomb(folder)}, legacy=True)


def namespace_that_runs_code(folder: Path) -> Path:
    """A sound model, and the bomb within the `args` that official training checkpoints hold."""
    args = argparse.Namespace(mask_ratio=0.75, norm_pix_loss=Bomb(folder))
    return _save(folder / 'bomb_in_args.pth', {'model': _resnet(), 'args': args})


def bare_pickle_that_runs_code(folder: Path) -> Path:
    """No checkpoint at all but a plain pickle."""
    return _write(folder / 'bare_bomb.pth', pickle.dumps(Bomb(folder), protocol=2))


def truncated_pth(folder: Path) -> Path:
    path = _save(folder / 'truncated.pth', {'model': _resnet()})
    return _write(path, path.read_bytes()[: path.stat().st_size // 2])


def truncated_legacy_pth(folder: Path) -> Path:
    path = _save(folder / 'truncated_legacy.pth', {'model': _resnet()}, legacy=True)
    return _write(path, path.read_bytes()[: path.stat().st_size // 2])


def text_pth(folder: Path) -> Path:
    return _write(folder / 'text.pth', b'<html><body>404: not found</body></html>\n')


def empty_pth(folder: Path) -> Path:
    return _write(folder / 'empty.pth', b'')


def resnet_pth(folder: Path) -> Path:
    """A sound checkpoint of another model."""
    return _save(folder / 'resnet.pth', {'model': _resnet()})


def tensor_pth(folder: Path) -> Path:
    """Not a dictionary."""
    return _save(folder / 'tensor.pth', _resnet()['fc.weight'])


def npz_that_runs_code(folder: Path) -> Path:
    """An array of objects, which NumPy pickles, among sound ones."""
    bombs = np.array([Bomb(folder)], dtype=object)
    np.savez(folder / 'bomb.npz', **{'cls': np.zeros((1, 1, 8), np.float32), 'head/bias': bombs})
    return folder / 'bomb.npz'


def truncated_npz(folder: Path) -> Path:
    np.savez(folder / 'truncated.npz', cls=np.zeros((1, 1, 768), np.float32))
    path = folder / 'truncated.npz'
    return _write(path, path.read_bytes()[: path.stat().st_size // 2])


def pickle_npz(folder: Path) -> Path:
    """A pickle by another name: NumPy unpickles what it does not know, if it may."""
    return _write(folder / 'pickle.npz', pickle.dumps(Bomb(folder), protocol=2))


def truncated_safetensors(folder: Path) -> Path:
    """Cut within the numbers."""
    whole = _safetensors({'cls_token': _entry([1, 1, 768], 0, 3072)}, bytes(3072))
    return _write(folder / 'truncated.safetensors', whole[:-1000])


def huge_header_safetensors(folder: Path) -> Path:
    """The stated length of the header is a tebibyte."""
    return _write(folder / 'huge_header.safetensors', struct.pack('<Q', 1 << 40) + b'{}')


def garbage_header_safetensors(folder: Path) -> Path:
    """The header is no JSON."""
    return _write(folder / 'garbage.safetensors', struct.pack('<Q', 64) + bytes(range(192, 256)))


def overlapping_safetensors(folder: Path) -> Path:
    """Two tensors on the same bytes."""
    entry = _entry([8], 0, 32)
    content = _safetensors({'cls_token': entry, 'pos_embed': entry}, bytes(32))
    return _write(folder / 'overlapping.safetensors', content)


def misshapen_safetensors(folder: Path) -> Path:
    """A shape that its bytes do not fill."""
    content = _safetensors({'cls_token': _entry([1, 1, 768], 0, 32)}, bytes(32))
    return _write(folder / 'misshapen.safetensors', content)


def resnet_safetensors(folder: Path) -> Path:
    """A sound file of another model."""
    entries, size = {}, 0
    for name, shape in RESNET.items():
        length = 4 * int(np.prod(shape))
        entries[name] = _entry(list(shape), size, size + length)
        size += length
    return _write(folder / 'resnet.safetensors', _safetensors(entries, bytes(size)))


PTH = (
    pickle_that_runs_code,
    legacy_pickle_that_runs_code,
    namespace_that_runs_code,
    bare_pickle_that_runs_code,
    truncated_pth,
    truncated_legacy_pth,
    text_pth,
    empty_pth,
    resnet_pth,
    tensor_pth,
)
OTHERS = (
    npz_that_runs_code,
    truncated_npz,
    pickle_npz,
    truncated_safetensors,
    huge_header_safetensors,
    garbage_header_safetensors,
    overlapping_safetensors,
    misshapen_safetensors,
    resnet_safetensors,
)
RESNET = {
    'conv1.weight': (64, 3, 7, 7),
    'bn1.weight': (64,),
    'bn1.bias': (64,),
    'bn1.running_mean': (64,),
    'bn1.running_var': (64,),
    'layer1.0.conv1.weight': (64, 64, 3, 3),
    'layer1.0.conv2.weight': (64, 64, 3, 3),
    'fc.weight': (10, 64),
    'fc.bias': (10,),
}


def _resnet() -> dict:
    torch = pytest.importorskip('torch')
    return {name: torch.ones(shape) for name, shape in RESNET.items()}


def _save(path: Path, content, legacy: bool = False) -> Path:
    torch = pytest.importorskip('torch')
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _entry(shape: list[int], start: int, end: int) -> dict:
    return {'dtype': 'F32', 'shape': shape, 'data_offsets': [start, end]}


def _safetensors(entries: dict, numbers: bytes) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack('<Q', len(header)) + header + numbers
