"""The published weights of DALL-E's encoder -> a file for `target.tokenizer`.

    curl -O https://cdn.openai.com/dall-e/encoder.pkl
    python scripts/convert_dvae.py encoder.pkl dvae.safetensors

They are a pickled PyTorch module, and a pickle can run any code. Here nothing in it is run: the
classes of `ALLOWED`, and no other name, may stand in the file, and for each an inert class of our
own is taken, which holds what was stored and does nothing. Neither torch nor dall_e is imported.
Says which classes it met, and writes nothing unless names and shapes are those of the encoder.
"""

import argparse
import io
import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mae_jax.errors import UserError
from mae_jax.files.limits import check_expansion
from mae_jax.files.tensors import damaged, local, replacing, writing
from mae_jax.pretext.dvae import DVAE
from mae_jax.pretext.tokenizers import check_dvae, save_dvae

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""What a file of the format before PyTorch 1.6 begins with."""


class Module:
    """In place of a class that the file names: holds the state that it was stored with."""

    def __init__(self, *_: Any):
        self.state: Mapping[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class Storage(NamedTuple):
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: str


class Tensor(NamedTuple):
    """Which of these numbers a tensor has; the rest counts in numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage, offset, shape, strides, *_: Any) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor, *_: Any) -> Tensor:
    return tensor


ALLOWED = {
    ('dall_e.encoder', 'Encoder'): Module,
    ('dall_e.encoder', 'EncoderBlock'): Module,
    ('dall_e.utils', 'Conv2d'): Module,
    ('torch.nn.modules.container', 'Sequential'): Module,
    ('torch.nn.modules.activation', 'ReLU'): Module,
    ('torch.nn.modules.pooling', 'MaxPool2d'): Module,
    ('torch.nn.modules.linear', 'Identity'): Module,
    ('torch', 'device'): Module,
    ('torch._utils', '_rebuild_parameter'): _parameter,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch', 'FloatStorage'): '<f4',
    ('torch', 'HalfStorage'): '<f2',
    ('collections', 'OrderedDict'): OrderedDict,
    ('builtins', 'set'): set,
    ('__builtin__', 'set'): set,  # as the default protocol writes it
}
"""(module, name) in the file -> what is taken in its place."""


class RestrictedUnpickler(pickle._Unpickler):
    """Knows the names of `ALLOWED`; `met` are those that were there.

    In Python: the one in C makes room for as many objects as a file says that it has.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.met: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(
                f'it would run {module}.{name}, which is never done; give the encoder.pkl that '
                'OpenAI published'
            )
        self.met.add(f'{module}.{name}')
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == 'module':  # (class, its source): how the older format names a class
            return rest[0]
        dtype, key, _, _, *view = rest
        if any(view):  # of PyTorch before 0.4
            raise UserError('it holds views of numbers; save it again by a newer PyTorch')
        return Storage(key, dtype)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='encoder.pkl', help='the file that OpenAI published')
    parser.add_argument('destination', metavar='dvae.safetensors', help='the file to write')
    parser.add_argument('--overwrite', action='store_true', help='replace it where it exists')
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.destination, arguments.overwrite)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(error.exit_status)


def convert(source: str, destination: str, overwrite: bool = False) -> None:
    """Reads a pickled encoder and writes a dVAE's file.

    Raises:
      UserError: the source cannot be read without running it, or is another model; or the
        destination exists, or cannot be written.
    """
    if Path(destination).suffix != '.safetensors':
        raise UserError(f'{destination} must end in .safetensors: choose another name.')
    if os.path.exists(destination) and not overwrite:
        raise UserError(f'{destination} exists: give --overwrite to replace it.')
    print(f'reading {source}; nothing in it is run')
    published, met = read_module(source)
    print(f'it names {", ".join(sorted(met))}; all are allowed, and inert here')
    tensors = {our_name(name): to_channels_last(x) for name, x in published.items()}
    dvae = architecture(source, tensors)
    check_dvae(source, dvae, tensors)
    with replacing(destination) as path, writing(destination):
        save_dvae(path, dvae, tensors)
    numbers = sum(x.size for x in tensors.values())
    print(f'wrote {destination}: {dvae.codes} codes, {len(tensors)} tensors, {numbers:,} numbers')


def read_module(path: str) -> tuple[dict[str, np.ndarray], set[str]]:
    """Tensors of a pickled module by their names there, and the classes that the file names.

    Raises:
      UserError: it names another, or is damaged.
    """
    with local(path) as file:
        try:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            with open(file, 'rb') as opened:
                root, storages, met = read(opened)
            return {name: _array(x, storages) for name, x in _named_tensors(root)}, met
        except Exception as error:  # a damaged file meets every kind of exception
            told = error if isinstance(error, UserError) else 'it is damaged, or is no module'
            raise damaged(path, 'PyTorch', told) from error


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, bytes], set[str]]:
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
        check_expansion(sum(x.file_size for x in archive.infolist()), os.path.getsize(file.name))
        unpickler = RestrictedUnpickler(io.BytesIO(archive.read(pickled)))
        root = unpickler.load()
        folder = pickled.removesuffix('.pkl') + '/'
        names = [name for name in archive.namelist() if name.startswith(folder)]
        return root, {n.removeprefix(folder): archive.read(n) for n in names}, unpickler.met


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, bytes], set[str]]:
    """Magic number, version, facts of the machine, module, keys; then count and numbers of each."""
    if RestrictedUnpickler(file).load() != MAGIC_NUMBER:
        raise UserError('it is no file of PyTorch')
    for _ in ('version', 'machine'):
        RestrictedUnpickler(file).load()
    unpickler = RestrictedUnpickler(file)
    root = unpickler.load()
    sizes = {x.storage.key: np.dtype(x.storage.dtype).itemsize for _, x in _named_tensors(root)}
    storages = {}
    for key in RestrictedUnpickler(file).load():
        size = int.from_bytes(file.read(8), 'little') * sizes[key]
        if size > os.path.getsize(file.name) - file.tell():
            raise ValueError('a storage that goes beyond the file')
        storages[key] = file.read(size)
    return root, storages, unpickler.met


def _named_tensors(
    module: Module, prefix: str = '', met: set[int] | None = None
) -> list[tuple[str, Tensor]]:
    """As PyTorch names them: 'blocks.group_1.block_1.res_path.conv_1.w'."""
    met = set() if met is None else met
    if id(module) in met:  # of modules in each other's place there could be no end
        raise ValueError('a module that stands in two places')
    met.add(id(module))
    named = [(prefix + name, x) for name, x in module.state.get('_parameters', {}).items()]
    for name, child in module.state.get('_modules', {}).items():
        named += _named_tensors(child, f'{prefix}{name}.', met)
    return named


def _array(tensor: Tensor, storages: Mapping[str, bytes]) -> np.ndarray:
    """float32, of the tensor's own shape."""
    numbers = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) > len(numbers):
        raise ValueError('a tensor of more numbers than there are')
    if min(*tensor.shape, *tensor.strides) < 1 or not 0 <= tensor.offset < len(numbers) - last:
        raise ValueError('a tensor that is not within its numbers')
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)
    return view.astype(np.float32)


def our_name(name: str) -> str:
    """'blocks.group_1.block_1.res_path.conv_1.w' -> 'group_1_block_1/conv_1/kernel'."""
    name = name.removeprefix('blocks.').replace('.block_', '_block_')
    *parts, leaf = name.replace('.res_path.', '.').replace('output.conv', 'output').split('.')
    return '/'.join([*parts, {'w': 'kernel', 'b': 'bias'}.get(leaf, leaf)])


def to_channels_last(tensor: np.ndarray) -> np.ndarray:
    """[out, in, height, width] -> [height, width, in, out]; a bias stays as it is."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def architecture(path: str, tensors: Mapping[str, np.ndarray]) -> DVAE:
    """The dVAE whose tensors these may be: its sizes as the first and last layers have them."""
    try:
        width, codes = tensors['input/bias'].size, tensors['output/bias'].size
    except KeyError as error:
        raise UserError(f"{path} is not DALL-E's encoder: it has no {error}.") from error
    blocks = sum(f'group_1_block_{i + 1}/conv_1/bias' in tensors for i in range(len(tensors)))
    return DVAE(codes, width, blocks)


if __name__ == '__main__':
    main()
