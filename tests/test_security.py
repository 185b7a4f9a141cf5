"""What `SECURITY.md` promises: of data and weights nothing is run, none leads out of its directory,
none takes more than its bound, and a run of one process listens nowhere.

Thousands of mutated files more are read in `tests/faults/`.
"""

import ast
import io
import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from helpers import commands, hostile_files
from helpers.claims import npy
from helpers.tiny_runs import make_image_folder
from PIL import Image

import mae_jax
from mae_jax.checkpoints import integrity as checksums
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.data.images.decode import BadImage, decode
from mae_jax.data.sources.folder import folder_source
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.files.limits import is_inside
from mae_jax.files.tensors import read_npz
from mae_jax.inference.visualize import visualize
from mae_jax.interop.convert import convert

ROOT = Path(__file__).parents[1]
ALLOWED = {
    # Each by file and what is called there; SECURITY.md names them.
    ('scripts/convert_dvae.py', 'import pickle'),  # an unpickler that knows inert classes alone
    ('mae_jax/__init__.py', 'import_module'),  # the modules of the public names
    ('mae_jax/registry.py', 'import_module'),  # 'module:function' in the config of a run
    ('mae_jax/interop/check.py', 'import_module'),  # 'timm' or 'transformers'
    ('mae_jax/ablation/suite.py', 'import_module'),  # 'configs.ablations'
    ('mae_jax/cli/main.py', 'import_module'),  # the command that was given
}
MODULES = {'pickle', 'cloudpickle', 'dill', 'marshal', 'shelve', 'joblib', 'yaml', 'code'}
CALLS = {'eval', 'exec', 'compile', '__import__', 'import_module', 'run_path', 'run_module'}


# Nothing is run.


def test_no_code_reads_what_could_run():
    """Every file of the package and its scripts: pickles, eval and their like, by syntax."""
    files = [ROOT / 'main.py', *ROOT.glob('mae_jax/**/*.py'), *ROOT.glob('scripts/**/*.py')]
    assert len(files) > 50
    found = {
        (str(file.relative_to(ROOT)), what)
        for file in files
        for what in risks(ast.parse(file.read_text()))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    'code',
    [
        'import pickle',
        'from pickle import loads',
        'eval(x)',
        'np.load(f)',
        'np.load(f, allow_pickle=True)',
        'np.load(f, allow_pickle=flag)',
        'torch.load(f)',
        'torch.load(f, weights_only=False)',
        'importlib.import_module(name)',
        'builtins.exec(x)',
        'yaml.load(x)',
    ],
)
def test_the_search_for_such_code_finds_it(code):
    assert list(risks(ast.parse(code)))
    assert not list(risks(ast.parse('np.load(f, allow_pickle=False); model.eval(); re.compile(x)')))


def risks(tree: ast.AST):
    """What could run code of a file, in a few words each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, 'module', None)
            names = [module] if module else [alias.name for alias in node.names]
            yield from (f'import {name}' for name in names if name.split('.')[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ''
        name = getattr(function, 'attr', getattr(function, 'id', ''))
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in CALLS and owner in ('', 'builtins', 'importlib', 'runpy'):
            yield name
        if owner in MODULES:
            yield f'{owner}.{name}'
        safe = {'np': ('allow_pickle', 'False'), 'torch': ('weights_only', 'True')}.get(owner)
        if name == 'load' and safe and given.get(safe[0]) != safe[1]:
            yield f'{owner}.load'


@pytest.fixture
def bomb(tmp_path):
    """A pickle that would make a file when it is read, and whether it did."""
    return pickle.dumps(hostile_files.Bomb(tmp_path)), tmp_path / 'ran'


@pytest.mark.parametrize('name', ['image.npy', 'image.jpg', 'image.tif'])
def test_a_pickle_is_no_image(name, bomb, tmp_path):
    content, ran = bomb
    buffer = io.BytesIO()
    np.save(buffer, np.array([hostile_files.Bomb(tmp_path)], object), allow_pickle=True)
    for data in (content, buffer.getvalue()):
        with pytest.raises(BadImage):
            decode({'image': data, 'name': name}, 3)
    assert not ran.exists()


@pytest.mark.parametrize('name', ['config.json', 'checkpoints/2/meta/metadata', 'arrays', 'all'])
def test_a_pickle_in_a_work_directory_is_not_read(name, work_directory, bomb, tmp_path):
    content, ran = bomb
    step = work_directory / 'checkpoints/2'
    victims = [work_directory / name]
    if name in ('arrays', 'all'):
        victims = [file for file in step.rglob('*') if file.is_file()]
    for file in victims:
        file.write_bytes(content)
    (step / checksums.CHECKSUMS).unlink()
    checksums.write_checksums(epath.Path(step))
    readers = [mae_jax.load, mae_jax.load_encoder]
    if name == 'config.json':
        readers.append(mae_jax.load_normalize)  # which reads no more than that
    for path in (work_directory, step):
        for read in readers:
            with pytest.raises(UserError):
                read(path)
    assert not ran.exists()


def set_tokenizer(work_directory: Path) -> None:
    path = work_directory / 'config.json'
    config = json.loads(path.read_text())
    config['target']['tokenizer'] = 'trap_of_a_config:function'
    path.write_text(json.dumps(config))


def test_a_function_that_a_foreign_config_names_is_not_imported(
    work_directory, tmp_path, monkeypatch
):
    trap = tmp_path / 'trap_of_a_config.py'
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef function(x): return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    set_tokenizer(work_directory)
    Image.new('L', (8, 8)).save(tmp_path / 'image.png')
    mae_jax.load(work_directory)
    mae_jax.load_encoder(work_directory)
    mae_jax.load_normalize(work_directory)
    visualize(work_directory, [tmp_path / 'image.png'], tmp_path / 'out.png')
    convert(work_directory, tmp_path / 'ours.safetensors', say=lambda line: None)
    mae_jax.load(tmp_path / 'ours.safetensors')
    config = commands.make_tiny_config()
    config.init_from = str(work_directory)
    config.model.variant = config.dataset.name = None
    inherited = inherit(config, str(tmp_path / 'new'))
    assert inherited.dataset.name == 'digits' and inherited.target.tokenizer is None
    assert 'trap_of_a_config' not in sys.modules and not (tmp_path / 'ran').exists()
    import trap_of_a_config  # noqa: F401  the trap would have been found

    assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'name', ['somebody:their_data', 'os.path:join', 'trap_of_a_config:function']
)
def test_a_data_set_whose_code_would_be_run_is_not_inherited(name, work_directory, tmp_path):
    path = work_directory / 'config.json'
    config = json.loads(path.read_text())
    config['dataset']['name'] = name
    path.write_text(json.dumps(config))
    ours = commands.make_tiny_config()
    ours.init_from, ours.dataset.name = str(work_directory), None
    with pytest.raises(UserError, match=f'{name}.*dataset.name'):
        inherit(ours, str(tmp_path / 'new'))


def test_a_photograph_is_never_given_to_ghostscript(tmp_path):
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file\n'
    assert Image.open(io.BytesIO(eps)).format == 'EPS'  # Pillow would
    with pytest.raises(BadImage, match='not an image of a known format'):
        decode({'image': eps, 'name': 'a.jpg'}, 3)


# Nothing leads out of its directory.


@pytest.mark.parametrize(
    'name', ['../x', '/etc/passwd', 'a/../../x', '..', '.', '', 'a//b', './a', 'a\\b', 'a\0', 7]
)
def test_names_that_lead_elsewhere_are_seen(name, work_directory):
    assert not is_inside(name)
    assert is_inside('state/d/0a') and is_inside('checksums.txt') and is_inside('a..b')
    if isinstance(name, str):
        reseal(work_directory / 'checkpoints/2', {name: [0, 0]})
        with pytest.raises(UserError, match='is intact'):
            mae_jax.load(work_directory)


def reseal(step: Path, more: dict) -> None:
    """A list of files with others in it, under its own right checksum."""
    path = step / checksums.CHECKSUMS
    _, _, listed = path.read_bytes().partition(b'\n')
    listed = json.dumps(json.loads(listed) | more).encode()
    path.write_bytes(b'%08x\n%b' % (zlib.crc32(listed), listed))


@pytest.mark.parametrize('target', ['/etc/passwd', '/dev/zero', '..', 'missing'])
def test_a_link_in_a_checkpoint_is_refused(target, work_directory):
    said = []
    (work_directory / 'checkpoints/2/state/link').symlink_to(target)
    with pytest.raises(UserError):
        restore_weights(work_directory / 'checkpoints', log=said.append)
    assert 'state/link is a link' in said[0]


def test_a_pipe_in_a_checkpoint_is_not_waited_for(work_directory):
    os.mkfifo(work_directory / 'checkpoints/2/state/pipe')
    with pytest.raises(UserError):
        mae_jax.load(work_directory)


@pytest.mark.parametrize('name', ['../other.safetensors', '/tmp/other.safetensors', '..', 'a\0'])
def test_an_index_names_files_beside_it_alone(name, tmp_path):
    safetensors.numpy.save_file({'x': np.zeros(3, np.float32)}, tmp_path / 'other.safetensors')
    hub = tmp_path / 'hub'
    hub.mkdir()
    index = {'weight_map': {'x': name}}
    (hub / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(UserError, match='not the name of a file beside it'):
        convert(hub, tmp_path / 'ours.safetensors', say=lambda line: None)


def test_a_member_of_an_archive_is_only_a_name(tmp_path):
    """Nothing is unpacked to disk."""
    path = tmp_path / 'archive.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('../../escaped.npy', npy(np.zeros(3)))
    assert list(read_npz(path)) == ['../../escaped']
    assert sorted(tmp_path.iterdir()) == [path]
    assert not (tmp_path.parents[1] / 'escaped.npy').exists()


def test_a_loop_of_links_in_an_image_folder_has_an_end(tmp_path):
    make_image_folder(tmp_path / 'images', 'ab', count=2)
    for folder in 'ab':
        (tmp_path / 'images' / folder / 'again').symlink_to(tmp_path / 'images')
        (tmp_path / 'images' / folder / 'also').symlink_to(tmp_path / 'images')
    began = time.monotonic()
    assert len(folder_source('train', path=str(tmp_path / 'images')).files) < 20
    assert time.monotonic() - began < 5


@pytest.mark.parametrize('make', ['pipe', 'device'])
def test_what_is_no_file_is_no_image(make, tmp_path):
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


# Nothing listens.


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_of_one_process_listens_nowhere(workers, tmp_path):
    images = make_image_folder(tmp_path / 'images', '', count=64)
    arguments = [a for a in commands.TINY if 'eval_examples' not in a]
    run = commands.start(
        *arguments,
        '--config.dataset.name=folder',
        f'--config.dataset.path={images}',
        f'--config.dataset.workers={workers}',
        '--config.num_steps=40',
        f'--workdir={tmp_path / "run"}',
    )
    looks, most = 0, 0
    try:
        while run.poll() is None:
            family = descendants(run.pid)
            most = max(most, len(family))
            assert listening(family) == []
            looks += 1
            time.sleep(0.05)
    finally:
        run.kill()
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert looks > 20 and most >= 1 + workers


def test_a_socket_that_listens_would_be_seen():
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(1, flush=True); "
        'import sys; sys.stdin.read()'
    )
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-c', code], **options) as child:
        assert child.stdout.readline()
        assert len(listening(descendants(child.pid))) == 1
        child.stdin.close()


def descendants(pid: int) -> list[int]:
    """A process and those below it."""
    found = [pid]
    for parent in found:
        for tasks in Path(f'/proc/{parent}/task').glob('*/children'):
            try:
                found += [int(child) for child in tasks.read_text().split()]
            except OSError:  # it has just ended
                continue
    return found


def listening(pids: list[int]) -> list[str]:
    """Local addresses of TCP sockets in state LISTEN that the processes hold, and bound UDP's."""
    held = set()
    for pid in pids:
        for descriptor in Path(f'/proc/{pid}/fd').glob('*'):
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith('socket:['):
                held.add(target[8:-1])
    found = []
    for table, states in (('tcp', '0A'), ('tcp6', '0A'), ('udp', '07'), ('udp6', '07')):
        try:
            lines = Path(f'/proc/{pids[0]}/net/{table}').read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == states and fields[9] in held:
                found.append(f'{table} {fields[1]}')
    return found
