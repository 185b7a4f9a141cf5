"""From one library's checkpoint to another's, by way of our own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mae_jax.checkpoints.find import is_checkpoint
from mae_jax.config.model import image_size, make_architecture
from mae_jax.errors import UserError
from mae_jax.files.paths import absolute
from mae_jax.files.tensors import (
    read_safetensors_metadata,
    replacing,
    write_npz,
    write_pth,
    write_safetensors,
    writing,
)
from mae_jax.interop import huggingface
from mae_jax.interop.check import check
from mae_jax.interop.facts import facts
from mae_jax.interop.foreign import read_foreign
from mae_jax.interop.load import read_module
from mae_jax.interop.modules import encoder_of, kind_of, some
from mae_jax.interop.trained import HEADER, Trained, flat, write_trained
from mae_jax.interop.translate import to_ours, to_theirs

FORMATS = {
    'mae_jax': ('.safetensors',),
    'official': ('.pth', '.safetensors'),
    'huggingface': ('',),
    'augreg': ('.npz',),
    'big_vision': ('.npz',),
}
"""What can be written, and how such names end ('' is a directory's); the first is meant by them."""
FILES = {'config.json', 'preprocessor_config.json', 'model.safetensors'}
"""Of a directory that is written."""


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    to: str | None = None,
    encoder_only: bool = False,
    overwrite: bool = False,
    run: bool = True,
    given: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Reads a checkpoint of any format, and writes it in another.

    What was written is read again, and compared to the bit; then the model is run beside the
    other library's, where that is installed.

    Args:
      source: a work directory, one of its checkpoints, a file of ours, or another library's.
      destination: the file or directory to write.
      to: one of `FORMATS`; None goes by the name of `destination`.
      encoder_only: leave decoder and head out.
      overwrite: replace `destination` where it exists.
      run: False does not run the models.
      given: what the source does not state, see `facts.py`.
      say: is told what was read, assumed, left out and checked.

    Raises:
      UserError: the source cannot be read or has no counterpart in the format, or the destination
        exists. Nothing is written then.
    """
    to = _format_of(destination, to)
    _check_destination(source, absolute(destination), to, overwrite)
    trained, checked = _read(source, given or {}, run, say)
    if encoder_only:
        trained = trained._replace(params={'encoder': encoder_of(trained.params)}, model_state={})
    if not kind_of(flat(trained)).has_norm and to != 'mae_jax':
        raise UserError(
            f'{source} was fine-tuned with mean pooling, so that its encoder has no final norm, '
            f"which '{to}' needs: convert to 'mae_jax', or the whole classifier to 'official'."
        )
    say(summary(trained))
    with replacing(destination) as fresh:
        with writing(destination):
            write(fresh, trained, to)
        # What the others do not state is not to be guessed in reading them again.
        known = {} if to in ('mae_jax', 'huggingface') else facts(trained.config)
        again, rechecked = _read(fresh, known, run)
        _check_same(destination, trained, again)
    for when, told in (('as read', checked), ('as written', rechecked)):
        if told:
            say(f'{when}: {told}')
    say(f'{destination} is written.')


def _check_destination(
    source: str | os.PathLike, path: epath.Path, to: str, overwrite: bool
) -> None:
    """Refuses to replace what is there, unless told; what is no model, in any case."""
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f'{path} exists: give --overwrite to replace it, or another name.')
    if path.is_dir():
        alike = to == 'huggingface' and {child.name for child in path.iterdir()} <= FILES
    else:
        alike = to != 'huggingface'
    if not alike or path == absolute(source):
        raise UserError(f'{path} is not such a model as would be written: choose another name.')


def write(path: str | os.PathLike, trained: Trained, to: str) -> None:
    """Writes a model in one of the `FORMATS`."""
    if to == 'mae_jax':
        write_trained(path, trained)
        return
    tensors = to_theirs(trained, to)
    if to == 'huggingface':
        huggingface.write(path, tensors, trained.config, kind_of(flat(trained)))
    elif to == 'augreg':
        write_npz(path, tensors)
    elif to == 'big_vision':
        write_npz(path, {f'params/{name}': tensor for name, tensor in tensors.items()})
    elif os.fspath(path).lower().endswith('.pth'):
        write_pth(path, tensors)
    else:
        write_safetensors(path, tensors, {'format': 'pt'})


def is_ours(path: str | os.PathLike) -> bool:
    """Whether `read_trained` reads it, rather than `read_foreign`."""
    path = absolute(path)
    if not path.exists():
        raise UserError(f'{path} does not exist.')
    if path.is_dir():
        return is_checkpoint(path) or (path / 'checkpoints').exists()
    return path.suffix.lower() == '.safetensors' and HEADER in read_safetensors_metadata(path)


def summary(trained: Trained) -> str:
    """One line: what it is, how large, of which step."""
    config, tensors = trained.config, flat(trained)
    sizes, kind = make_architecture(config.model), kind_of(tensors)
    height, width = image_size(config)
    what = {'mae': 'autoencoder', 'encoder': 'encoder'}.get(kind.name)
    told = (
        f'{what or f"classifier of {kind.classes} classes"}: '
        f'{sum(x.size for x in tensors.values()):,} numbers; encoder {sizes["width"]} wide, '
        f'{sizes["depth"]} blocks of {sizes["heads"]} heads, patch {sizes["patch_size"]}, images '
        f'{height} x {width} x {config.dataset.channels}'
    )
    return told if trained.step is None else f'{told}; step {trained.step:,}'


def _format_of(destination: str | os.PathLike, to: str | None) -> str:
    endings = {ending for endings in FORMATS.values() for ending in endings}
    suffix = Path(destination).suffix.lower()
    if to == 'huggingface' and suffix not in endings:
        suffix = ''  # a directory's name may have a dot in it
    fitting = [name for name, endings in FORMATS.items() if suffix in endings]
    if to is None and fitting:
        return fitting[0]
    if to not in fitting:
        ways = '; '.join(
            f'{name}: {" or ".join(filter(None, endings)) or "a directory"}'
            for name, endings in FORMATS.items()
        )
        raise UserError(f'{destination} does not name what is to be written: give --to ({ways}).')
    return to


def _read(
    path: str | os.PathLike,
    given: dict[str, Any],
    run: bool,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Trained, str | None]:
    """(model, what running it beside the other library's showed)."""
    if is_ours(path):
        _, trained = read_module(path, given=given)
        return trained, None
    foreign = read_foreign(path)
    try:
        trained = to_ours(foreign, given, say)
        return trained, check(foreign, trained) if run else None
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def _check_same(path: str | os.PathLike, trained: Trained, again: Trained) -> None:
    """Holds what was read again to what was written: every number, and what is known beside."""
    before, after = (flat(t) | facts(t.config) for t in (trained, again))
    optional = {'decoder_heads', 'mask_ratio', 'target'}  # of an encoder alone nobody tells them
    differing = [
        name
        for name in before.keys() | after.keys()
        if (name not in optional or name in before and name in after)
        and not (name in before and name in after and _same(before[name], after[name]))
    ]
    if differing:
        raise UserError(
            f'{path} would not read as the model it is made of: {some(sorted(differing))} would '
            'differ. Nothing is written.'
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    return one == other
