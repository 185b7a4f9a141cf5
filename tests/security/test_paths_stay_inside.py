"""No path in data or weights leads out of its directory, or to a file that is not regular."""

import json
import os
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers.claims import npy
from helpers.tiny_runs import make_image_folder

import mae_jax
from mae_jax.checkpoints.integrity import CHECKSUMS
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.data.images.decode import BadImage
from mae_jax.data.sources.folder import folder_source
from mae_jax.errors import UserError
from mae_jax.files.limits import is_inside
from mae_jax.files.tensors import read_npz
from mae_jax.interop.convert import convert


@pytest.mark.parametrize(
    'name', ['../x', '/etc/passwd', 'a/../../x', '..', '.', '', 'a//b', './a', 'a\\b', 'a\0', 7]
)
def test_paths_that_lead_outside_are_detected(name, work_directory):
    assert not is_inside(name)
    assert is_inside('state/d/0a') and is_inside('checksums.txt') and is_inside('a..b')
    if isinstance(name, str):
        reseal(work_directory / 'checkpoints/2', {name: [0, 0]})
        with pytest.raises(UserError, match='is intact'):
            mae_jax.load(work_directory)


def reseal(step: Path, more: dict) -> None:
    """Adds entries to a list of checksums, and updates the checksum of the list."""
    path = step / CHECKSUMS
    _, _, listed = path.read_bytes().partition(b'\n')
    listed = json.dumps(json.loads(listed) | more).encode()
    path.write_bytes(b'%08x\n%b' % (zlib.crc32(listed), listed))


@pytest.mark.parametrize('target', ['/etc/passwd', '/dev/zero', '..', 'missing'])
def test_a_link_in_a_checkpoint_is_refused(target, work_directory):
    log = []
    (work_directory / 'checkpoints/2/state/link').symlink_to(target)
    with pytest.raises(UserError):
        restore_weights(work_directory / 'checkpoints', log=log.append)
    assert 'state/link is a link' in log[0]


def test_a_pipe_in_a_checkpoint_does_not_block(work_directory):
    os.mkfifo(work_directory / 'checkpoints/2/state/pipe')
    with pytest.raises(UserError):
        mae_jax.load(work_directory)


@pytest.mark.parametrize('name', ['../other.safetensors', '/tmp/other.safetensors', '..', 'a\0'])
def test_an_index_may_name_only_files_beside_it(name, tmp_path):
    safetensors.numpy.save_file({'x': np.zeros(3, np.float32)}, tmp_path / 'other.safetensors')
    hub = tmp_path / 'hub'
    hub.mkdir()
    index = {'weight_map': {'x': name}}
    (hub / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(UserError, match='not the name of a file beside it'):
        convert(hub, tmp_path / 'ours.safetensors', say=lambda line: None)


def test_a_member_of_an_archive_is_only_a_name(tmp_path):
    """Archives are not unpacked to disk."""
    path = tmp_path / 'archive.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('../../escaped.npy', npy(np.zeros(3)))
    assert list(read_npz(path)) == ['../../escaped']
    assert sorted(tmp_path.iterdir()) == [path]
    assert not (tmp_path.parents[1] / 'escaped.npy').exists()


def test_a_loop_of_links_in_an_image_folder_ends(tmp_path):
    make_image_folder(tmp_path / 'images', 'ab', count=2)
    for folder in 'ab':
        (tmp_path / 'images' / folder / 'again').symlink_to(tmp_path / 'images')
        (tmp_path / 'images' / folder / 'also').symlink_to(tmp_path / 'images')
    began = time.monotonic()
    assert len(folder_source('train', path=str(tmp_path / 'images')).files) < 20
    assert time.monotonic() - began < 5


@pytest.mark.parametrize('make', ['pipe', 'device'])
def test_a_special_file_is_not_an_image(make, tmp_path):
    make_image_folder(tmp_path, '', count=3)
    if make == 'pipe':
        os.mkfifo(tmp_path / 'z.png')
    else:
        (tmp_path / 'z.png').symlink_to('/dev/zero')
    source = folder_source('train', path=str(tmp_path))
    index = [i for i, name in enumerate(source.files) if name == 'z.png']
    source = source if index else folder_source('validation', path=str(tmp_path))
    with pytest.raises(BadImage, match='not a regular file'):
        source[source.files.index('z.png')]
