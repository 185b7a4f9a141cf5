"""What `fuzzing.py` does to weights: a tiny model in every format, mutated and loaded.

The parts of a checkpoint are mutated twice: as they are, which its checksums notice, and under
checksums that were made anew, which only somebody who means harm would do.
"""

import contextlib
import json
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import mae_jax
from helpers import commands, hostile_files, mutations
from mae_jax.checkpoints.integrity import CHECKSUMS, write_checksums
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.config.saved import to_json
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.interop import convert
from mae_jax.interop.modules import Kind, encoder_of, make_module
from mae_jax.interop.trained import Trained, write_trained
from mae_jax.pretext.dvae import DVAE, parameter_shapes
from mae_jax.pretext.tokenizers import dvae_tokenizer, save_dvae

ACCEPTED = (UserError,)
Files = dict[str, bytes]
"""Path below the target -> content; '' for a target that is one file."""


class Target(NamedTuple):
    """A model on disk."""

    name: str
    files: Files
    read: Callable[[Path], Any]
    weight: int
    reseal: bool = False
    """Whether checkpoints get fitting checksums when they have been mutated."""


class State(NamedTuple):
    targets: list[Target]
    spare: list[bytes]
    """Files to splice in: pickles that run code, and files with wrong headers."""
    folder: Path
    expected: set[str]
    """What lies there while a case is read."""


class Case(NamedTuple):
    target: Target
    path: Path
    changes: str

    def __repr__(self) -> str:
        return f'{self.target.name}: {self.changes}'


def prepare(folder: Path) -> State:
    warnings.simplefilter('ignore')
    import logging

    logging.disable()
    source = folder / 'source'
    source.mkdir()
    targets = make_targets(source)
    spare = [make(source).read_bytes() for make in hostile_files.OTHERS]
    spare += [pickle.dumps(hostile_files.Bomb(folder), protocol=protocol) for protocol in (0, 2, 4)]
    shutil.rmtree(source)
    state = State(targets, spare, folder, set())
    for target in targets:  # each is read as it is, and every library imported
        read(state, Case(target, _write(state, target, target.files), 'as it is'))
    return state


def make(state: State, rng: random.Random) -> Case:
    target = rng.choices(state.targets, [target.weight for target in state.targets])[0]
    files, names = dict(target.files), list(target.files)
    pool = [*target.files.values(), *state.spare]
    changes = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(names)
        how = rng.random()
        if how < 0.88 or name not in files:
            files[name] = mutations.mutate(target.files[name], rng, pool)
            changes.append(f'{name} mutated')
        elif how < 0.92:
            files[name] = rng.choice(state.spare)
            changes.append(f'{name} replaced')
        elif how < 0.95:
            files[name] = rng.choice(pool)
            changes.append(f'{name} exchanged')
        elif how < 0.97 and len(files) > 1:
            del files[name]
            changes.append(f'{name} removed')
        else:
            files[name] = rng.choice(('/etc/passwd', '/dev/zero', '..', name or 'x'))
            changes.append(f'{name} a link')
    return Case(target, _write(state, target, files), ', '.join(changes))


def read(state: State, case: Case) -> None:
    case.target.read(case.path)


def leftovers(state: State) -> list[str]:
    """Names of files that nobody should have written; clears away the case."""
    there = set(map(str, state.folder.rglob('*')))
    shutil.rmtree(state.folder / 'case')
    return sorted(there - state.expected) + os.listdir('.')


def _write(state: State, target: Target, files: dict[str, bytes | str]) -> Path:
    """Writes a case; a text instead of bytes is where a link leads."""
    case = state.folder / 'case'
    shutil.rmtree(case, ignore_errors=True)
    path = case / target.name
    for name, content in files.items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.symlink_to(content)
        else:
            file.write_bytes(content)
    if target.reseal:
        for step in path.glob('checkpoints/*'):
            with contextlib.suppress(OSError):
                (step / CHECKSUMS).unlink(missing_ok=True)
                _seal(step)
    state.expected.clear()
    state.expected.update(map(str, state.folder.rglob('*')))
    return path


def _seal(step: Path) -> None:
    """Fitting checksums, but links to what has no end have none."""
    links = [path for path in step.rglob('*') if path.is_symlink()]
    if not links:
        write_checksums(epath.Path(step))


def make_targets(folder: Path) -> list[Target]:
    """A tiny autoencoder, an encoder and a dVAE, as every library has them."""
    config = commands.make_tiny_config()
    module = make_module(config, Kind('mae'))
    keys = {'params': jax.random.key(0), 'mask': jax.random.key(1)}
    params = jax.jit(module.init)(keys, jnp.zeros((1, 8, 8, 1)))['params']
    params = jax.tree.map(np.asarray, params)
    whole = Trained(params, {}, 3, config)
    encoder = Trained({'encoder': encoder_of(params)}, {}, 3, config)
    given = dict(heads=4, image_size=(8, 8), mean=(0.3,), std=(0.4,))
    whole_given = given | dict(decoder_heads=4)

    def loading(path: Path) -> None:
        mae_jax.load_normalize(path)
        mae_jax.load(path)

    def encoding(path: Path) -> None:
        mae_jax.load_encoder(path, image_size=16, channels=3, new_channels='average')

    def starting(path: Path) -> None:
        config = commands.make_tiny_config()
        config.init_from, config.dataset.name, config.model.variant = str(path), None, None
        inherit(config, str(path.parent / 'workdir'))

    def converting(given: dict[str, Any]) -> Callable[[Path], None]:
        return lambda path: convert._read(path, given, False)

    def restoring(path: Path) -> None:
        with Checkpoints(path / 'checkpoints', log=lambda line: None) as checkpoints:
            checkpoints.restore(state)

    def weighing(path: Path) -> None:
        restore_weights(path / 'checkpoints', log=lambda line: None)

    def tokenizing(path: Path) -> None:
        dvae_tokenizer(path, (2, 2)).load_params()

    state = {'params': params, 'model_state': {}, 'step': np.array(3, np.int32)}
    (folder / 'run').mkdir()
    (folder / 'run/config.json').write_text(to_json(config))
    with Checkpoints(folder / 'run/checkpoints') as checkpoints:
        checkpoints.save(3, state, {'seed': 0, 'batch_size': 16, 'dataset': 'digits'})
    write_trained(folder / 'ours.safetensors', whole)
    write_trained(folder / 'encoder.safetensors', encoder)
    convert.write(folder / 'official.safetensors', whole, 'official')
    convert.write(folder / 'hub', whole, 'huggingface')
    convert.write(folder / 'augreg.npz', encoder, 'augreg')
    convert.write(folder / 'big_vision.npz', encoder, 'big_vision')
    np.savez_compressed(folder / 'packed.npz', **dict(np.load(folder / 'augreg.npz')))
    shutil.copytree(folder / 'hub', folder / 'shards')
    (folder / 'shards/model.safetensors').rename(folder / 'shards/part-1.safetensors')
    index = {'metadata': {}, 'weight_map': {'a': 'part-1.safetensors'}}
    (folder / 'shards/model.safetensors.index.json').write_text(json.dumps(index))
    dvae = DVAE(16, 4, 1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(dvae).items()}
    save_dvae(folder / 'dvae.safetensors', dvae, tensors)

    def target(name: str, reading: Callable, weight: int, reseal: bool = False) -> Target:
        return Target(name, _files(folder / name), reading, weight, reseal)

    return [
        target('ours.safetensors', loading, 12),
        target('encoder.safetensors', encoding, 8),
        target('ours.safetensors', starting, 8),
        target('official.safetensors', converting(whole_given), 12),
        target('augreg.npz', converting(given), 12),
        target('big_vision.npz', converting(given), 8),
        target('packed.npz', converting(given), 8),
        target('hub', converting({}), 12),
        target('shards', converting({}), 8),
        target('dvae.safetensors', tokenizing, 4),
        target('run', loading, 4),
        target('run', starting, 4),
        target('run', weighing, 6, True),
        target('run', loading, 4, True),
        target('run', restoring, 2),
        target('run', restoring, 3, True),
    ]


def _files(path: Path) -> Files:
    if path.is_file():
        return {'': path.read_bytes()}
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob('*'))
        if file.is_file()
    }
