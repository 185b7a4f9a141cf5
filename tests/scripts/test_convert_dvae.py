import importlib
import os
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import jax
import make_dvae
import numpy as np
import pytest
from flax import traverse_util
from helpers import hostile_files
from helpers.commands import ROOT

from mae_jax.errors import UserError
from mae_jax.pretext.dvae import DVAE
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
def script(monkeypatch):
    """Its functions, in this process."""
    monkeypatch.syspath_prepend(ROOT / 'scripts')
    return importlib.import_module('convert_dvae')


@pytest.fixture
def look_alike(monkeypatch):
    """Makes a module that pickles under the published names: look_alike(tensors) -> module."""
    torch = pytest.importorskip('torch')

    fakes = {name: types.ModuleType(name) for name in ('dall_e', 'dall_e.encoder', 'dall_e.utils')}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)

    def module_class(module: str, name: str) -> type:
        made = type(name, (torch.nn.Module,), {'__module__': module})
        setattr(fakes[module], name, made)
        return made

    encoder = module_class('dall_e.encoder', 'Encoder')
    block = module_class('dall_e.encoder', 'EncoderBlock')
    conv = module_class('dall_e.utils', 'Conv2d')

    def build(tensors: dict[str, np.ndarray]):
        root = encoder()
        root.vocab_size, root.device = 24, torch.device('cpu')
        for name, tensor in tensors.items():
            *path, leaf = name.split('.')
            node = root
            for part in path:
                if part not in node._modules:
                    layer = block if part.startswith('block_') else torch.nn.Sequential
                    node.add_module(part, conv() if part == path[-1] else layer())
                node = node._modules[part]
            setattr(node, leaf, torch.nn.Parameter(torch.from_numpy(tensor), requires_grad=False))
        root.blocks.output.add_module('relu', torch.nn.ReLU())
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
    actual = traverse_util.flatten_dict(tokenizer.load_params())
    expected = traverse_util.flatten_dict(make_dvae.to_tree(tensors))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == np.float32
        rounded = tensor.astype(np.float16) if half else tensor
        np.testing.assert_array_equal(actual[name], rounded)


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


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


def zipped(path: Path, payload: bytes) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('encoder/data.pkl', payload)


def legacy(path: Path, payload: bytes) -> None:
    head = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
    path.write_bytes(b''.join(pickle.dumps(x, protocol=2) for x in head) + payload)


def bare(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)


@pytest.mark.parametrize('write', [zipped, legacy, bare])
def test_code_in_the_file_is_named_and_never_run(write, script, tmp_path):
    marker = tmp_path / 'ran'
    payload = pickle.dumps(Bomb(marker), protocol=2)
    write(tmp_path / 'encoder.pkl', payload)
    with pytest.raises(UserError) as error:
        script.convert(tmp_path / 'encoder.pkl', tmp_path / 'dvae.safetensors')
    assert str(error.value).startswith(f'{tmp_path}/encoder.pkl cannot be read')
    assert 'would run posix.system, which is never done' in str(error.value)
    assert not marker.exists()
    assert not (tmp_path / 'dvae.safetensors').exists()
    pickle.loads(payload)
    assert marker.exists()  # a reader that trusts the file runs the code


def test_the_script_ends_with_one_sentence_and_status_1(tmp_path):
    zipped(tmp_path / 'encoder.pkl', pickle.dumps(Bomb(tmp_path / 'ran'), protocol=2))
    status, output = convert(tmp_path / 'encoder.pkl', tmp_path / 'dvae.safetensors')
    *_, sentence = output.splitlines()
    assert status == 1 and sentence.startswith(f'error: {tmp_path}/encoder.pkl cannot be read')
    assert 'Traceback' not in output and not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('make', hostile_files.PTH)
def test_files_that_are_not_what_they_say_are_refused(make, script, tmp_path):
    path = make(tmp_path)
    with pytest.raises(UserError, match=f'{path.name} (cannot be read|is not DALL-E)'):
        script.convert(path, tmp_path / 'dvae.safetensors')
    assert not (tmp_path / 'ran').exists()
    assert not (tmp_path / 'dvae.safetensors').exists()


def test_no_attribute_of_what_is_allowed_can_be_reached(script, tmp_path):
    """Dotted names, which later protocols look up attribute by attribute."""
    for module, name in [
        ('collections', 'OrderedDict.fromkeys'),
        ('torch._utils', '_rebuild_tensor_v2.__globals__'),
        ('dall_e.encoder', 'Encoder.__setstate__'),
        ('dall_e.decoder', 'Decoder'),
        ('torch', 'load'),
        ('builtins', 'getattr'),
    ]:
        strings = [b'\x8c' + bytes([len(x)]) + x.encode() for x in (module, name)]
        zipped(tmp_path / 'encoder.pkl', b'\x80\x04' + b''.join(strings) + b'\x93.')
        with pytest.raises(UserError, match=f'would run {module}.{name}, which is never done'):
            script.convert(tmp_path / 'encoder.pkl', tmp_path / 'dvae.safetensors')


def rewritten(path: Path, change) -> None:
    """The archive with each member's bytes put through change(name, bytes)."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_a_tensor_that_reaches_past_its_numbers_is_refused(script, look_alike, tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'encoder.pkl'
    torch.save(look_alike(make_dvae.weights(**SMALL)), path)
    rewritten(path, lambda name, content: content[:-4] if '/data/' in name else content)
    with pytest.raises(UserError, match=r'encoder\.pkl cannot be read .* damaged'):
        script.convert(path, tmp_path / 'dvae.safetensors')


def test_tensors_are_read_however_they_lie(script, look_alike, tmp_path):
    """Parts of a common storage, channels last, and one of which only part is meant."""
    torch = pytest.importorskip('torch')
    tensors = make_dvae.weights(**SMALL)
    module = look_alike(tensors)
    conv = module.blocks.input
    conv.w.data = conv.w.data.to(memory_format=torch.channels_last)
    conv.b.data = torch.arange(100, dtype=torch.float32)[7 : 7 + 3 * 8 : 3]
    torch.save(module, tmp_path / 'encoder.pkl')
    tensors_read, _ = script.read_module(tmp_path / 'encoder.pkl')
    np.testing.assert_array_equal(tensors_read['blocks.input.w'], tensors['blocks.input.w'])
    np.testing.assert_array_equal(tensors_read['blocks.input.b'], np.arange(7, 31, 3))


@pytest.mark.parametrize('change', ['missing', 'extra', 'shape'])
def test_another_module_is_refused_and_nothing_written(change, script, look_alike, tmp_path):
    torch = pytest.importorskip('torch')
    tensors = make_dvae.weights(**SMALL)
    if change == 'missing':
        del tensors['blocks.group_3.block_1.res_path.conv_2.b']
    elif change == 'extra':
        tensors['blocks.group_3.block_1.res_path.conv_5.b'] = np.ones(3, np.float32)
    else:
        tensors['blocks.group_3.block_1.res_path.conv_2.b'] = np.ones(3, np.float32)
    torch.save(look_alike(tensors), tmp_path / 'encoder.pkl')
    with pytest.raises(UserError, match=r'encoder\.pkl is not .* group_3_block_1/conv_[25]/bias'):
        script.convert(tmp_path / 'encoder.pkl', tmp_path / 'dvae.safetensors')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['encoder.pkl']


def test_places_that_cannot_be_written_are_named_before_reading(script, tmp_path):
    with pytest.raises(UserError, match=r'out\.npz must end in \.safetensors'):
        script.convert('missing.pkl', tmp_path / 'out.npz')
    (tmp_path / 'out.safetensors').touch()
    with pytest.raises(UserError, match=r'out\.safetensors exists: give --overwrite'):
        script.convert('missing.pkl', tmp_path / 'out.safetensors')
    with pytest.raises(UserError, match=r'missing\.pkl does not exist'):
        script.convert('missing.pkl', tmp_path / 'out.safetensors', overwrite=True)
