"""Weights and configs that claim to be, or unpack to, more than the limits are refused."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
import tensorstore
from etils import epath
from helpers import hostile_files
from helpers.claims import npy, npy_that_claims, resident_peak

import mae_jax
from mae_jax.checkpoints.integrity import CHECKSUMS, write_checksums
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.errors import UserError
from mae_jax.files.limits import read_json, read_npy
from mae_jax.files.tensors import read_npz, read_safetensors
from mae_jax.interop.convert import convert


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_npz_that_claims_too_much_is_refused(method, tmp_path, allocations):
    path = tmp_path / 'a.npz'
    with zipfile.ZipFile(path, 'w', method) as archive:
        archive.writestr('x.npy', npy_that_claims(1 << 20, 1 << 20))
    with pytest.raises(UserError, match='does not fit its shape'):
        read_npz(path)
    assert allocations() < 1 << 20


def test_a_pth_of_views_on_one_number_is_refused(tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'a.pth'
    torch.save({'model': {'x': torch.zeros(1).expand(1 << 20, 1 << 20)}}, path)
    with pytest.raises(UserError, match='64 times'):
        convert(path, tmp_path / 'ours.safetensors', say=lambda line: None)


def test_a_pth_that_contains_itself_many_times_ends(tmp_path):
    torch = pytest.importorskip('torch')
    nested: dict = {}
    for _ in range(60):
        nested = {'a': nested, 'b': nested}  # 2^60 dicts, each once in the file
    circle: dict = {}
    circle['circle'] = circle
    path = tmp_path / 'a.pth'
    for content in (nested, circle):
        torch.save({'model': content}, path)
        with pytest.raises(UserError, match='no named tensors'):
            convert(path, tmp_path / 'ours.safetensors', say=lambda line: None)


def test_an_npz_that_unpacks_to_too_much_is_refused(tmp_path, allocations):
    path = tmp_path / 'a.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x.npy', bytes(300 << 20), compresslevel=1)
    tracemalloc.reset_peak()
    base = allocations()
    assert path.stat().st_size < 2 << 20
    with pytest.raises(UserError, match='more than 64 times'):
        read_npz(path)
    assert allocations() - base < 1 << 20


def test_a_safetensors_header_that_claims_too_much_is_refused(tmp_path, allocations):
    for path in (
        hostile_files.huge_header_safetensors(tmp_path),
        hostile_files.misshapen_safetensors(tmp_path),
    ):
        with pytest.raises(UserError):
            read_safetensors(path)
    assert allocations() < 1 << 20


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('image_size', [1 << 20, 1 << 20]),
        ('model.width', 1 << 30),
        ('model.depth', 1 << 40),
        ('model.decoder_depth', 1 << 40),
        ('model.decoder_width', 1 << 30),
        ('model.patch_size', 0),
        ('model.heads', 'four'),
        ('dataset.channels', 1 << 40),
        ('dataset.mean', {'a': 1}),
        ('model', []),
        ('model.variant', 7),
        ('target.name', ['pixel']),
    ],
)
def test_a_config_that_claims_another_model_is_refused(field, value, work_directory):
    path = work_directory / 'config.json'
    config = json.loads(path.read_text())
    node = config
    *groups, last = field.split('.')
    for group in groups:
        node = node[group]
    node[last] = value
    path.write_text(json.dumps(config))
    before = resident_peak()
    with pytest.raises(UserError, match='theirs'):
        mae_jax.load(work_directory)
    assert resident_peak() - before < 512 << 20


def test_a_text_that_is_nested_or_endless_is_refused(tmp_path):
    deep = tmp_path / 'deep.json'
    deep.write_text('[' * 100_000)
    with pytest.raises(ValueError, match='deeply'):
        read_json(deep)
    long = tmp_path / 'long.json'
    with long.open('wb') as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match='the most'):
        read_json(long)


def test_an_array_must_have_the_size_in_its_header():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for order in 'CF':
        np.testing.assert_array_equal(read_npy(npy(np.asarray(array, order=order))), array)
    for data in (npy(array)[:-1], npy(array) + b'\0', npy_that_claims(3, 1 << 60)):
        with pytest.raises(ValueError, match='does not fit its shape'):
            read_npy(data)


def test_a_checkpoint_of_huge_arrays_is_refused_before_they_are_made(tmp_path):
    """8 GiB of zeros take a few kilobytes on disk."""
    kernel = np.ones((4, 4), np.float32)
    with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
        checkpoints.save(1, {'params': {'encoder': {'kernel': kernel}}}, {})
    step = tmp_path / 'checkpoints/1'
    base = f'file://{step}/state/'
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
    (key,) = (k for k in store.list().result() if k.endswith(b'kernel/.zarray'))
    zarray = json.loads(store.read(key).result().value)
    store.write(key, json.dumps(zarray | {'shape': [1 << 16, 1 << 15], 'chunks': [4, 4]})).result()
    (step / CHECKSUMS).unlink()
    write_checksums(epath.Path(step))
    before = resident_peak()
    with pytest.raises(UserError, match='64 times'):
        restore_weights(tmp_path / 'checkpoints')
    assert resident_peak() - before < 256 << 20
