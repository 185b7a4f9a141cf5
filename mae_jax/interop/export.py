"""Exports a trained model as a file that runs without this package: StableHLO or ONNX."""

import importlib.metadata
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax import export as jax_export

from mae_jax.errors import UserError
from mae_jax.files.paths import absolute
from mae_jax.files.tensors import replacing, writing
from mae_jax.interop.functions import Exportable, Value, make_exportable
from mae_jax.runtime.versions import versions

FORMATS = ('stablehlo', 'onnx')
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
"""For which StableHLO is exported; ONNX has no platforms."""
BATCH = 3
"""Images in the check: not one, which might have become a constant."""
TOLERANCE = 1e-4
"""Largest difference of outputs in the check, as a share of the largest output if above 1."""
MAX_BYTES = 1_900_000_000
"""Both formats are limited to files of 2 GiB."""
Arrays = Mapping[str, np.ndarray]


def export(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    to: str = 'stablehlo',
    what: str | None = None,
    input_dtype: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Writes `<out>/<what>.<to>` and, beside it, `<what>.<to>.json`, which describes it.

    The file is read again and run on random images: its outputs must be those of the model. For
    ONNX that needs onnxruntime.

    Args:
      source: as for `mae_jax.load`.
      out: the directory to write to; it is made.
      to: one of `FORMATS`.
      what, input_dtype: as for `make_exportable`.
      overwrite: whether to replace the files if they exist.
      say: called with lines about what was written and compared.

    Raises:
      UserError: the model cannot be read or exported, a library is missing, the files exist, or the
        outputs differ. Nothing is written then.
    """
    if to not in FORMATS:
        raise UserError(f'--to={to} is unknown: use {" | ".join(FORMATS)}.')
    if to == 'onnx' and not importlib.util.find_spec('jax2onnx'):
        raise UserError("ONNX needs jax2onnx: pip install 'mae_jax[onnx]'.")
    exportable = make_exportable(source, what, input_dtype)
    if exportable.num_bytes > MAX_BYTES:
        raise UserError(
            f'{source} has {exportable.num_bytes / 1e9:.1f} GB of parameters, and a file of {to} '
            'holds 2 GB: use mae-jax convert, which writes safetensors.'
        )
    path = absolute(out) / f'{exportable.what}.{to}'
    about = path.with_name(f'{path.name}.json')
    for existing in (path, about):
        if existing.exists() and not overwrite:
            raise UserError(
                f'{existing} exists: give --overwrite to replace it, or another folder.'
            )
    with replacing(path) as fresh:
        content = _to_onnx(exportable) if to == 'onnx' else _to_stablehlo(exportable)
        with writing(path):
            Path(fresh).write_bytes(content)
        result = check(exportable, fresh, to)
    with replacing(about) as fresh, writing(about):
        Path(fresh).write_text(json.dumps(describe(exportable, path.name, to), indent=2) + '\n')
    say(result)
    say(f'{path}: {exportable.what}, {len(content) / 1e6:,.1f} MB; inputs and outputs: {about}')


def describe(exportable: Exportable, file: str, to: str) -> dict:
    """Returns what a user of the file has to know, as JSON has it."""
    data = exportable.config.dataset

    def value(value: Value) -> dict:
        return value._asdict() | {'shape': ['batch', *value.shape]}

    return {
        'file': file,
        'format': to,
        'what': exportable.what,
        'inputs': list(map(value, exportable.inputs)),
        'outputs': list(map(value, exportable.outputs)),
        'normalisation': {
            'inside': True,
            'formula': '(images / scale - mean) / std, by channel',
            'scale': data.scale,
            'mean': list(data.mean),
            'std': list(data.std),
        },
        **({'class_names': exportable.class_names} if exportable.class_names else {}),
        'step': exportable.step,
        'versions': versions(),
        **({'platforms': list(PLATFORMS)} if to == 'stablehlo' else {}),
    }


def _specs(exportable: Exportable) -> list[jax.ShapeDtypeStruct]:
    (batch,) = jax_export.symbolic_shape('batch')
    return [jax.ShapeDtypeStruct((batch, *x.shape), x.dtype) for x in exportable.inputs]


def _to_stablehlo(exportable: Exportable) -> bytes:
    exporter = jax_export.export(jax.jit(exportable.function), platforms=PLATFORMS)
    return bytes(exporter(*_specs(exportable)).serialize())


def _to_onnx(exportable: Exportable) -> bytes:
    names = [value.name for value in exportable.outputs]

    def in_order(*arrays: jax.Array) -> Sequence[jax.Array]:
        outputs = exportable.function(*arrays)
        return tuple(outputs[name] for name in names)

    logging.getLogger('onnx_ir').setLevel(logging.ERROR)  # one line for every shape it derives
    logging.getLogger('jax2onnx').setLevel(logging.CRITICAL)  # its plugins of absent libraries
    import jax2onnx

    try:
        # ONNX has no branches by platform, and jax2onnx no translation of them.
        with mock.patch.object(jax.lax, 'platform_dependent', _default_branch):
            model = jax2onnx.to_onnx(
                in_order,
                _specs(exportable),
                model_name=exportable.what,
                input_names=[value.name for value in exportable.inputs],
                output_names=names,
            )
    except (AttributeError, NotImplementedError, TypeError) as error:
        version = importlib.metadata.version('jax2onnx')
        raise UserError(
            f'jax2onnx {version} cannot translate the {exportable.what} with jax '
            f'{jax.__version__}: {error}. Another version of either may; --to=stablehlo needs none.'
        ) from error
    return model.SerializeToString()


def _default_branch(*arrays: jax.Array, default: Callable, **of_platforms: Callable) -> Any:
    del of_platforms
    return default(*arrays)


def check(exportable: Exportable, path: str, to: str) -> str:
    """Runs the file on random images; returns how much its outputs differ from the model's.

    Raises:
      UserError: by more than `TOLERANCE`.
    """
    if to == 'onnx' and not importlib.util.find_spec('onnxruntime'):
        return 'not compared: onnxruntime is not installed'
    inputs = random_inputs(exportable, BATCH)
    run, name = (_run_onnx, 'onnxruntime') if to == 'onnx' else (_run_stablehlo, 'jax')
    actual = run(path, inputs)
    # StableHLO has the precision of the device inside, ONNX computes in full float32.
    with jax.default_matmul_precision('highest' if to == 'onnx' else None):
        expected = jax.device_get(exportable.function(*inputs.values()))
    differences = {}
    for output, values in expected.items():
        values, others = (np.asarray(x, np.float32) for x in (values, actual[output]))
        difference = float(np.abs(values - others).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(values).max())):
            raise UserError(
                f'the exported {exportable.what} gives another {output} in {name} than in the '
                f'model, by up to {difference:.2g}: nothing is written.'
            )
        differences[output] = difference
    largest = max(differences, key=differences.get)
    return (
        f'run in {name} on {BATCH} images: the largest difference is {differences[largest]:.1e}, '
        f'of {largest} (up to {np.abs(np.asarray(expected[largest], np.float32)).max():.3g})'
    )


def random_inputs(exportable: Exportable, batch: int) -> dict[str, np.ndarray]:
    """Draws inputs by name: images of noise in the range of the data, and noise of masks."""
    rng = np.random.default_rng(0)

    def draw(value: Value) -> np.ndarray:
        scale = exportable.config.dataset.scale if value.name == 'images' else 1.0
        array = rng.uniform(0, scale, (batch, *value.shape))
        return array.astype(value.dtype)

    return {value.name: draw(value) for value in exportable.inputs}


def _run_stablehlo(path: str, inputs: Arrays) -> Arrays:
    exported = jax_export.deserialize(bytearray(Path(path).read_bytes()))
    return jax.device_get(exported.call(*inputs.values()))


def _run_onnx(path: str, inputs: Arrays) -> Arrays:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warning of constants that it removes
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
