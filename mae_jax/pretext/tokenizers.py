"""Tokenizers compute the tokens that a model predicts: a code for each patch (Table 1d).

A tokenizer is DALL-E's dVAE, from a file that `scripts/convert_dvae.py` wrote, or a function of
the user's.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int32

from mae_jax.errors import UserError
from mae_jax.files.limits import parse_json
from mae_jax.files.tensors import read_safetensors, read_safetensors_metadata, write_safetensors
from mae_jax.pretext.dvae import DVAE, REDUCTION, parameter_shapes
from mae_jax.registry import import_function

HEADER = 'mae_jax_dvae'
"""Name in the metadata of a dVAE's file whose value is JSON: {codes, width, blocks}."""
FIELDS = ('codes', 'width', 'blocks')
LARGEST = {'codes': 1 << 20, 'width': 1 << 14, 'blocks': 64}
"""Limits of a file's sizes; the published dVAE has 8,192 codes, width 256, 2 blocks a group."""


@dataclass(frozen=True, eq=False)  # hashed by identity: `shapes` is a dict
class Tokenizer:
    """Computes codes from images, as a pure function of parameters and images."""

    codes: int
    """Size of the codebook: ids are in [0, codes)."""
    apply: Callable[[Any, Float[Array, 'B H W C']], Int32[Array, 'B N']]
    """(parameters, images) -> ids in the order of `models/patches.py`. Images are pixel / scale,
    clipped to [0, 1], both ends included."""
    shapes: Any
    """Nested dicts of `jax.ShapeDtypeStruct`, of the parameters; {} where there are none."""
    load_params: Callable[[], Any]
    """Reads the parameters: nested dicts of float32 NumPy arrays."""


def make_tokenizer(
    spec: str | None, *, codes: int, grid: tuple[int, int], channels: int
) -> Tokenizer:
    """Makes the tokenizer that `target.tokenizer` names.

    Args:
      spec: a file of `scripts/convert_dvae.py`, whose name ends in .safetensors, or
        'module:function'.
      codes: `target.codes`.
      grid: rows and columns of patches.
      channels: of the images.

    Raises:
      UserError: the file or function does not exist, or does not fit the other arguments.
    """
    if spec and spec.endswith('.safetensors'):
        if channels != 3:
            raise UserError(
                f'dataset.channels={channels} does not fit the dVAE of '
                f"target.tokenizer='{spec}', which takes 3: use a function of your own, "
                "target.tokenizer='module:function', or another target.name."
            )
        tokenizer = dvae_tokenizer(spec, grid)
        if tokenizer.codes != codes:
            raise UserError(
                f'target.codes={codes}, but the dVAE of {spec} has {tokenizer.codes}: set '
                f'target.codes={tokenizer.codes}.'
            )
        return tokenizer
    if spec and ':' in spec:
        return function_tokenizer(spec, codes, grid)
    raise UserError(
        f'target.tokenizer={spec!r} names nothing that makes the tokens of target.name=token: give '
        "a file that scripts/convert_dvae.py wrote, or 'module:function', a function of images "
        'that returns integer ids.'
    )


def function_tokenizer(spec: str, codes: int, grid: tuple[int, int]) -> Tokenizer:
    """Makes a tokenizer from a function of the user's, 'module:function'.

    It takes float images [B, H, W, C], pixel / scale, and returns integer ids below `codes`, [B, N]
    or [B, rows, columns]; JAX must be able to trace it.

    Raises:
      UserError: the module or function does not exist; and, when `apply` is traced, the function
        returns something else.
    """
    function = import_function(spec, 'target.tokenizer')
    field = f'target.tokenizer={spec!r}'
    rows, columns = grid

    def apply(params, images):
        batch = len(images)
        try:
            out = jax.eval_shape(function, images)
        except jax.errors.JAXTypeError as error:
            raise UserError(
                f'{field} cannot be traced by JAX: write it in jax.numpy, without branches on '
                'values.'
            ) from error
        except (TypeError, ValueError) as error:
            raise UserError(f'{field} fails for images {list(images.shape)}: {error}') from error
        shapes = (batch, rows * columns), (batch, rows, columns)
        is_array = isinstance(out, jax.ShapeDtypeStruct)
        if not is_array or out.shape not in shapes or not jnp.issubdtype(out.dtype, jnp.integer):
            got = f'{out.dtype} {list(out.shape)}' if is_array else f'{type(out).__name__}'
            raise UserError(
                f'{field} returns {got} for images {list(images.shape)}: it must return integer '
                f'ids {list(shapes[0])} or {list(shapes[1])}, one for each patch.'
            )
        return jnp.asarray(function(images), jnp.int32).reshape(shapes[0])

    return Tokenizer(codes, apply, {}, dict)


def dvae_tokenizer(path: str | os.PathLike, grid: tuple[int, int]) -> Tokenizer:
    """Makes a tokenizer that returns the most likely code of DALL-E's dVAE for each patch.

    Images are resized to 8 pixels a patch (112 for a grid of 14 x 14) as in BEiT (arXiv
    2106.08254), by an antialiased Lanczos filter.

    Args:
      path: a file that `save_dvae` wrote; `load_params` reads its tensors.
      grid: rows and columns of patches.

    Raises:
      UserError: the file does not exist, or is not that of a dVAE.
    """
    dvae = _read_dvae(path)
    rows, columns = grid

    def apply(params, images):
        batch, _, _, channels = images.shape
        shape = (batch, rows * REDUCTION, columns * REDUCTION, channels)
        images = jax.image.resize(images.astype(jnp.float32), shape, 'lanczos3', antialias=True)
        logits = dvae.apply({'params': params}, images.clip(0, 1))  # the filter overshoots
        return jnp.argmax(logits, axis=-1).reshape(batch, rows * columns).astype(jnp.int32)

    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in parameter_shapes(dvae).items()
    }
    shapes = traverse_util.unflatten_dict(shapes, sep='/')
    return Tokenizer(dvae.codes, apply, shapes, partial(_read_dvae_params, path, dvae))


def save_dvae(path: str | os.PathLike, dvae: DVAE, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a local file of the dVAE's tensors, float32, after `check_dvae` accepted them."""
    fields = {name: getattr(dvae, name) for name in FIELDS}
    write_safetensors(path, tensors, {HEADER: json.dumps(fields)})


def check_dvae(path: str | os.PathLike, dvae: DVAE, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises a UserError that names `path` if the tensors are not those of the dVAE."""
    expected = parameter_shapes(dvae)
    actual = {name: tensor.shape for name, tensor in tensors.items()}
    names = expected.keys() | actual.keys()
    differing = sorted(name for name in names if expected.get(name) != actual.get(name))
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} is not DALL-E's encoder: {name} has shape {actual.get(name, 'none')}, where "
            f'the encoder has {expected.get(name, "none")}; {len(differing)} tensors differ.'
        )


def _read_dvae(path: str | os.PathLike) -> DVAE:
    metadata = read_safetensors_metadata(path)
    try:
        fields = parse_json(metadata[HEADER])
        sizes = {name: int(fields[name]) for name in FIELDS}
        if any(not 0 < size <= LARGEST[name] for name, size in sizes.items()):
            raise ValueError(f'{sizes} are out of range')
        return DVAE(**sizes)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f'target.tokenizer={os.fspath(path)!r} is not the file of a dVAE: make one by\n'
            '    python scripts/convert_dvae.py encoder.pkl dvae.safetensors'
        ) from error


def _read_dvae_params(path: str | os.PathLike, dvae: DVAE) -> Any:
    tensors, _ = read_safetensors(path)
    check_dvae(path, dvae, tensors)
    return traverse_util.unflatten_dict(tensors, sep='/')
