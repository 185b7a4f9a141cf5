"""Converts checkpoints between libraries, through a model of ours, and verifies the result."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mae_jax.config.model import image_size, make_architecture, norm_eps
from mae_jax.errors import UserError
from mae_jax.files.paths import absolute, similar_path
from mae_jax.files.tensors import (
    replacing,
    write_npz,
    write_pth,
    write_safetensors,
    writing,
)
from mae_jax.interop import huggingface
from mae_jax.interop.check import compare_outputs
from mae_jax.interop.detectors import detector_of, is_detector
from mae_jax.interop.detectron2 import is_detectron2, write_detectron2
from mae_jax.interop.foreign import read_foreign
from mae_jax.interop.hyperparameters import hyperparameters, override
from mae_jax.interop.load import read_module
from mae_jax.interop.modules import encoder_of, join_first, kind_of
from mae_jax.interop.read import is_ours, locate_model, read_config, read_model
from mae_jax.interop.trained import DETECTED, Trained, flat, write_trained
from mae_jax.interop.translate import to_ours, to_theirs
from mae_jax.models.transformer import NORM_EPS

FORMATS = {
    'mae_jax': ('.safetensors',),
    'official': ('.pth', '.safetensors'),
    'huggingface': ('',),
    'augreg': ('.npz',),
    'big_vision': ('.npz',),
    'detectron2': ('.pkl',),
}
"""Format -> its suffixes ('' is a directory). A suffix stands for the first format that has it."""
FILES = {'config.json', 'preprocessor_config.json', 'model.safetensors'}
"""Names of the files in a directory that `convert` writes."""


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

    Reads the result again and compares it to the bit; then compares the outputs of the model with
    those of the other library, if it is installed.

    Args:
      source: a work directory, one of its checkpoints, a file of ours or of another library, or
        'hf://owner/name[@revision]'.
      destination: the file or directory to write.
      to: one of `FORMATS`; None chooses by the suffix of `destination`.
      encoder_only: leave out decoder and head.
      overwrite: replace `destination` if it exists.
      run: whether to compare outputs.
      given: hyperparameters that override those of the source, see `hyperparameters.py`.
      say: called with lines about what was read, assumed, left out and compared.

    Raises:
      UserError: the source cannot be read or has no counterpart in the format, or the destination
        exists. Nothing is written then.
    """
    to = _format_of(destination, to)
    _check_destination(source, absolute(destination), to, overwrite)
    trained, comparison = _read(source, given or {}, run, say)
    if encoder_only:
        params = {'encoder': encoder_of(trained.params)}
        trained = trained._replace(params=params, model_state={}, class_names=())
    _check_kind(source, trained, to)
    _check_eps(source, trained, to)
    say(summary(trained))
    with replacing(destination) as fresh:
        with writing(destination):
            write(fresh, trained, to)
        # The other formats do not contain the hyperparameters, which must not be assumed again.
        known = {} if to in ('mae_jax', 'huggingface') else hyperparameters(trained.config)
        again, comparison_of_result = _read(fresh, known, run)
        _check_same(destination, trained, again)
    for when, message in (('as read', comparison), ('as written', comparison_of_result)):
        if message:
            say(f'{when}: {message}')
    say(f'{destination} is written.')


def _check_kind(source: str | os.PathLike, trained: Trained, to: str) -> None:
    """Raises a UserError where the format has no names for a model of this kind."""
    if is_detector(trained) and to not in ('mae_jax', 'detectron2'):
        raise UserError(
            f"{source} is a detector, for which '{to}' has no names: convert to 'detectron2' "
            "(.pkl) or 'mae_jax' (.safetensors), or give --encoder_only."
        )
    if to == 'detectron2' and not is_detector(trained):
        raise UserError(f"'{to}' has names for detectors, and {source} is none: give another --to.")
    if not kind_of(flat(trained)).has_norm and to not in ('mae_jax', 'detectron2'):
        raise UserError(
            f'{source} was fine-tuned with mean pooling, or for detection: its encoder has no '
            f"final norm, which '{to}' needs: convert to 'mae_jax', or the whole classifier to "
            "'official'."
        )


def _check_eps(source: str | os.PathLike, trained: Trained, to: str) -> None:
    """Raises a UserError where the format implies another epsilon of the norms than the model's."""
    eps = norm_eps(trained.config.model)
    if to not in ('mae_jax', 'huggingface') and eps != NORM_EPS:
        raise UserError(
            f"{source} computes with norm_eps={eps:g}, and models of '{to}' with {NORM_EPS:g}: "
            f"convert to 'mae_jax' or 'huggingface', or give --norm_eps {NORM_EPS:g} for a model "
            'whose outputs differ a little.'
        )


def _check_destination(
    source: str | os.PathLike, path: epath.Path, to: str, overwrite: bool
) -> None:
    """Raises a UserError if the destination exists and must not be replaced, or is not a model."""
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f'{path} exists: give --overwrite to replace it, or another name.')
    if path.is_dir():
        is_model = to == 'huggingface' and {child.name for child in path.iterdir()} <= FILES
    else:
        is_model = to != 'huggingface'
    if not is_model or path == absolute(source):
        raise UserError(f'{path} is not a model of that format: choose another name.')


def write(path: str | os.PathLike, trained: Trained, to: str) -> None:
    """Writes a model in one of the `FORMATS`."""
    if to == 'mae_jax':
        write_trained(path, trained)
        return
    if to == 'detectron2':
        write_detectron2(path, trained)
        return
    tensors = to_theirs(trained, to)
    if to == 'huggingface':
        kind = kind_of(flat(trained))
        huggingface.write(path, tensors, trained.config, kind, trained.class_names)
    elif to == 'augreg':
        write_npz(path, tensors)
    elif to == 'big_vision':
        write_npz(path, {f'params/{name}': tensor for name, tensor in tensors.items()})
    elif os.fspath(path).lower().endswith('.pth'):
        write_pth(path, tensors)
    else:
        write_safetensors(path, tensors, {'format': 'pt'})


def summary(trained: Trained) -> str:
    """Describes a model in one line: kind, sizes and step."""
    config, tensors = trained.config, flat(trained)
    sizes, kind = make_architecture(config.model), kind_of(tensors)
    height, width = image_size(config)
    name = {'mae': 'autoencoder', 'encoder': 'encoder'}.get(kind.name)
    if is_detector(trained):
        name = f'detector of {tensors[DETECTED].size - 1} classes'
    text = (
        f'{name or f"classifier of {kind.classes} classes"}: '
        f'{sum(x.size for x in tensors.values()):,} numbers; encoder {sizes["width"]} wide, '
        f'{sizes["depth"]} blocks of {sizes["heads"]} heads, patch {sizes["patch_size"]}, images '
        f'{height} x {width} x {config.dataset.channels}'
    )
    return text if trained.step is None else f'{text}; step {trained.step:,}'


def _format_of(destination: str | os.PathLike, to: str | None) -> str:
    """Returns the format to write, which must be one that has the suffix of the destination."""
    known = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
    suffix = Path(destination).suffix.lower()
    if to == 'huggingface' and suffix not in known:
        suffix = ''  # the name of a directory may contain a dot
    fitting = [name for name, suffixes in FORMATS.items() if suffix in suffixes]
    if to is None and fitting:
        return fitting[0]
    if to not in fitting:
        choices = '; '.join(
            f'{name}: {" or ".join(filter(None, suffixes)) or "a directory"}'
            for name, suffixes in FORMATS.items()
        )
        raise UserError(f'the format of {destination} is not clear: give --to ({choices}).')
    return to


def _read(
    path: str | os.PathLike,
    given: dict[str, Any],
    run: bool,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Trained, str | None]:
    """Reads a model of any format; returns it and the message of `compare_outputs`, if it ran."""
    local = locate_model(path)
    if not local.exists():
        raise UserError(f'{local} does not exist{similar_path(local) or "."}')
    if is_detectron2(local) or is_ours(local) and read_config(local).get('task') == 'detect':
        trained = read_model(local, say)
        if is_detector(trained):  # not an encoder alone
            detector_of(trained)
            return trained._replace(config=override(trained.config, given)), None
    if is_ours(local):
        _, trained = read_module(local, given=given)
        return trained, None
    foreign = read_foreign(local)
    try:
        trained = to_ours(foreign, given, say)
        return trained, compare_outputs(foreign, trained, given) if run else None
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def _check_same(path: str | os.PathLike, trained: Trained, again: Trained) -> None:
    """Raises a UserError unless a model that was read again has the same tensors and values."""
    before, after = (flat(t) | hyperparameters(t.config) for t in (trained, again))
    optional = {'decoder_heads', 'mask_ratio', 'target'}  # no format keeps them for an encoder
    differing = [
        name
        for name in before.keys() | after.keys()
        if (name not in optional or name in before and name in after)
        and not (name in before and name in after and _same(before[name], after[name]))
    ]
    if differing:
        raise UserError(
            f'{path} would not be read as the same model: {join_first(sorted(differing))} would '
            'differ. Nothing is written.'
        )


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after, equal_nan=True)
    return before == after
