import io
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import hostile_files
import jax
import make_dvae
import numpy as np
import pytest
from commands import ROOT
from flax import traverse_util

from mae_jax.models.dvae import DVAE
from mae_jax.pretext.tokenizers import make_tokenizer

SMALL = dict(codes=24, width=8, blocks=1)


def convert(*arguments: str | Path) -> tuple[int, str]:
    """The real script, which can import neither torch nor dall_e: (exit status, output)."""
    folder = Path(arguments[0]).parent / 'neither'
    for name in ('torch', 'dall_e'):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / '__init__.py').write_text('raise SystemExit("it was imported")')
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get('PYTHONPATH', '')])
    process = subprocess.run(
        [sys.executable, ROOT / 'scripts/convert_dvae.py', *arguments],
        env=os.environ | {'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return process.returncode, process.stdout


@pytest.fixture
def look_alike(monkeypatch):
    """Makes a module that pickles under the published names: look_alike(tensors) -> module."""
    torch = pytest.importorskip('torch')

    def module_class(module: str, name: str) -> type:
        made = type(name, (torch.nn.Module,), {'__module__': module})
        holder = sys.modules.get(module)
        if holder is None or not hasattr(holder, 'look_alike'):
            holder = types.ModuleType(module)
            holder.look_alike = True
            monkeypatch.setitem(sys.modules, module, holder)
        setattr(holder, name, made)
        return made

    monkeypatch.setitem(sys.modules, 'dall_e', types.ModuleType('dall_e'))
    encoder = module_class('dall_e.encoder', 'Encoder')
    block = module_class('dall_e.encoder', 'EncoderBlock')
    conv = module_class('dall_e.utils', 'Conv2d')

    def build(tensors: dict[str, np.ndarray]):
        root = encoder()
        root.vocab_size, root.device = 24, torch.device('cpu')
        for name, tensor in tensors.items():
            *path, leaf = name.split('.')
            node = root
            for i, part in enumerate(path):
                if part not in node._modules:
                    made = block() if part.startswith('block_') else torch.nn.Sequential()
                    made = conv() if i == len(path) - 1 else made
                    node.add_module(part, made)
                    made.add_module('relu', torch.nn.ReLU()) if part == 'res_path' else None
                node = node._modules[part]
            setattr(node, leaf, torch.nn.Parameter(torch.from_numpy(tensor), requires_grad=False))
        root.blocks.group_1.add_module('pool', torch.nn.MaxPool2d(2))
        root.blocks.group_1.block_1.add_module('id_path', torch.nn.Identity())
        return root

    return build


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('half', [False, True])
def test_a_pickled_module_becomes_a_tokenizer(legacy, half, look_alike, tmp_path):
    torch = pytest.importorskip('torch')
    tensors = make_dvae.weights(**SMALL)
    module = look_alike(tensors)
    module = module.half() if half else module
    path, out = tmp_path / 'encoder.pkl', tmp_path / 'dvae.safetensors'
    torch.save(module, path, _use_new_zipfile_serialization=not legacy)
    status, output = convert(path, out)
    assert status == 0, output
    assert 'dall_e.encoder.EncoderBlock' in output
    assert f'wrote {out}: 24 codes, {len(tensors)} tensors' in output

    tokenizer = make_tokenizer(str(out), codes=24, grid=(2, 3), channels=3)
    found = traverse_util.flatten_dict(tokenizer.load_params())
    expected = traverse_util.flatten_dict(make_dvae.to_tree(tensors))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == np.float32
        rounded = tensor.astype(np.float16) if half else tensor
        np.testing.assert_array_equal(found[name], rounded)


@pytest.mark.parametrize('legacy', [False, True])
def test_the_published_module_is_converted_to_its_own_logits(legacy, tmp_path):
    torch = pytest.importorskip('torch')
    pytest.importorskip('dall_e')
    module = make_dvae.published(**make_dvae.SMALL)
    path, out = tmp_path / 'encoder.pkl', tmp_path / 'dvae.safetensors'
    torch.save(module, path, _use_new_zipfile_serialization=not legacy)
    status, output = convert(path, out)
    assert status == 0, output
    images = make_dvae.images(1, 16, 16)
    params = make_tokenizer(str(out), codes=512, grid=(2, 2), channels=3).load_params()
    logits = jax.jit(DVAE(**make_dvae.SMALL).apply)({'params': params}, images)
    expected = make_dvae.published_logits(module, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
