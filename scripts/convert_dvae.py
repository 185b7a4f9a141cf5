"""Converts the published weights of DALL-E's encoder to a file for `target.tokenizer`.

    curl -O https://cdn.openai.com/dall-e/encoder.pkl
    python scripts/convert_dvae.py encoder.pkl dvae.safetensors

The weights are a pickled PyTorch module, and a pickle can run any code. This script runs none of
it: the file may name only the classes of `ALLOWED`, and each of them is replaced by an inert class
of our own, which only holds the stored state. Neither torch nor dall_e is imported. The script
prints which classes the file names, and writes nothing unless names and shapes are those of the
encoder.
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
from mae_jax.files.tensors import local_copy, replacing, unreadable, writing
from mae_jax.pretext.dvae import DVAE
from mae_jax.pretext.tokenizers import check_dvae, save_dvae

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""First object in a file of the format before PyTorch 1.6."""


class Module:
    """Replaces a class that the file names, and holds the stored state."""

    def __init__(self, *_: Any):
        self.state: Mapping[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class Storage(NamedTuple):
    """Reference to an array of numbers in the file."""

    key: str
    dtype: str


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

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
    ('__builtin__', 'set'): set,  # as pickle's default protocol writes it
}
"""(module, name) in the file -> its replacement."""


class RestrictedUnpickler(pickle._Unpickler):
    """Unpickles only the names of `ALLOWED`, and collects them in `names`.

    This is the unpickler in Python, because the one in C allocates memory for as many objects as a
    file claims to have.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(
                f'it would run {module}.{name}, which is never done; give the encoder.pkl that '
                'OpenAI published'
            )
        self.names.add(f'{module}.{name}')
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == 'module':  # (class, its source): how the older format names a class
            return rest[0]
        dtype, key, _, _, *view = rest
        if any(view):  # written by PyTorch before 0.4
            raise UserError('it contains views of storages; save it again with a newer PyTorch')
        return Storage(key, dtype)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='encoder.pkl', help='the file that OpenAI published')
    parser.add_argument('destination', metavar='dvae.safetensors', help='the file to write')
    parser.add_argument('--overwrite', action='store_true', help='replace it if it exists')
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.destination, arguments.overwrite)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(error.exit_status)


def convert(source: str, destination: str, overwrite: bool = False) -> None:
    """Reads a pickled encoder and writes the file of a dVAE.

    Raises:
      UserError: the source cannot be read without running code, or is another model; or the
        destination exists, or cannot be written.
    """
    if Path(destination).suffix != '.safetensors':
        raise UserError(f'{destination} must end in .safetensors: choose another name.')
    if os.path.exists(destination) and not overwrite:
        raise UserError(f'{destination} exists: give --overwrite to replace it.')
    print(f'reading {source}; nothing in it is run')
    published, names = read_module(source)
    print(f'it names {", ".join(sorted(names))}; all are allowed, and replaced by inert classes')
    tensors = {our_name(name): to_channels_last(x) for name, x in published.items()}
    dvae = architecture(source, tensors)
    check_dvae(source, dvae, tensors)
    with replacing(destination) as path, writing(destination):
        save_dvae(path, dvae, tensors)
    numbers = sum(x.size for x in tensors.values())
    print(f'wrote {destination}: {dvae.codes} codes, {len(tensors)} tensors, {numbers:,} numbers')


def read_module(path: str) -> tuple[dict[str, np.ndarray], set[str]]:
    """Reads the tensors of a pickled module by their names, and the classes that the file names.

    Raises:
      UserError: the file names a class that is not allowed, or is damaged.
    """
    with local_copy(path) as file:
        try:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            with open(file, 'rb') as opened:
                root, storages, names = read(opened)
            return {name: _array(x, storages) for name, x in _named_tensors(root)}, names
        except Exception as error:  # damaged files raise exceptions of all kinds
            problem = error if isinstance(error, UserError) else 'it is damaged, or not a module'
            raise unreadable(path, 'PyTorch', problem) from error


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, bytes], set[str]]:
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
        check_expansion(sum(x.file_size for x in archive.infolist()), os.path.getsize(file.name))
        unpickler = RestrictedUnpickler(io.BytesIO(archive.read(pickled)))
        root = unpickler.load()
        folder = pickled.removesuffix('.pkl') + '/'
        names = [name for name in archive.namelist() if name.startswith(folder)]
        return root, {n.removeprefix(folder): archive.read(n) for n in names}, unpickler.names


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, bytes], set[str]]:
    """Reads the older format.

    It consists of a magic number, a version, properties of the machine, the module and the keys of
    the storages; then, for each storage, its length and its numbers.
    """
    if RestrictedUnpickler(file).load() != MAGIC_NUMBER:
        raise UserError('it is not a file of PyTorch')
    for _ in ('version', 'machine'):
        RestrictedUnpickler(file).load()
    unpickler = RestrictedUnpickler(file)
    root = unpickler.load()
    sizes = {x.storage.key: np.dtype(x.storage.dtype).itemsize for _, x in _named_tensors(root)}
    storages = {}
    for key in RestrictedUnpickler(file).load():
        size = int.from_bytes(file.read(8), 'little') * sizes[key]
        if size > os.path.getsize(file.name) - file.tell():
            raise ValueError('a storage is longer than the rest of the file')
        storages[key] = file.read(size)
    return root, storages, unpickler.names


def _named_tensors(
    module: Module, prefix: str = '', visited: set[int] | None = None
) -> list[tuple[str, Tensor]]:
    """Lists tensors by PyTorch's names, such as 'blocks.group_1.block_1.res_path.conv_1.w'."""
    visited = set() if visited is None else visited
    if id(module) in visited:  # modules that contain each other would never end
        raise ValueError('a module occurs twice')
    visited.add(id(module))
    named = [(prefix + name, x) for name, x in module.state.get('_parameters', {}).items()]
    for name, child in module.state.get('_modules', {}).items():
        named += _named_tensors(child, f'{prefix}{name}.', visited)
    return named


def _array(tensor: Tensor, storages: Mapping[str, bytes]) -> np.ndarray:
    """Returns a tensor as a float32 array of its shape."""
    numbers = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) > len(numbers):
        raise ValueError('a tensor is larger than its storage')
    if min(*tensor.shape, *tensor.strides) < 1 or not 0 <= tensor.offset < len(numbers) - last:
        raise ValueError('a tensor exceeds its storage')
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)
    return view.astype(np.float32)


def our_name(name: str) -> str:
    """Converts 'blocks.group_1.block_1.res_path.conv_1.w' to 'group_1_block_1/conv_1/kernel'."""
    name = name.removeprefix('blocks.').replace('.block_', '_block_')
    *modules, leaf = name.replace('.res_path.', '.').replace('output.conv', 'output').split('.')
    return '/'.join([*modules, {'w': 'kernel', 'b': 'bias'}.get(leaf, leaf)])


def to_channels_last(tensor: np.ndarray) -> np.ndarray:
    """Transposes [out, in, height, width] to [height, width, in, out]; leaves a bias unchanged."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def architecture(path: str, tensors: Mapping[str, np.ndarray]) -> DVAE:
    """Makes the dVAE with the sizes of the first and last layers of the tensors."""
    try:
        width, codes = tensors['input/bias'].size, tensors['output/bias'].size
    except KeyError as error:
        raise UserError(f"{path} is not DALL-E's encoder: it has no {error}.") from error
    blocks = sum(f'group_1_block_{i + 1}/conv_1/bias' in tensors for i in range(len(tensors)))
    return DVAE(codes, width, blocks)


if __name__ == '__main__':
    main()
