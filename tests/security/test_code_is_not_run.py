"""No code in data or weights is run, as `SECURITY.md` promises.

`tests/faults/` reads thousands of mutated files more.
"""

import ast
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from helpers import commands, hostile_files
from helpers.commands import ROOT
from PIL import Image

import mae_jax
from mae_jax.checkpoints.integrity import CHECKSUMS, write_checksums
from mae_jax.data.images.decode import BadImage, decode
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.inference.visualize import visualize
from mae_jax.interop.convert import convert

ALLOWED = {
    # (file, call); SECURITY.md explains them.
    ('scripts/convert_dvae.py', 'import pickle'),  # an unpickler with inert classes only
    ('mae_jax/files/pickles.py', 'import pickle'),  # likewise
    ('mae_jax/files/pickles.py', 'pickle.dump'),  # of arrays, for detectron2
    ('mae_jax/__init__.py', 'import_module'),  # the modules of the public names
    ('mae_jax/registry.py', 'import_module'),  # 'module:function' in the config of a run
    ('mae_jax/interop/check.py', 'import_module'),  # 'timm' or 'transformers'
    ('mae_jax/cli/main.py', 'import_module'),  # the command
    *(
        (f'mae_jax/data/loader/{file}.py', call)  # between a run and its own worker processes
        for file, calls in {
            'readers': ('import pickle', 'pickle.dumps', 'pickle.loads'),
            'worker': (
                *('import pickle', 'pickle.dumps', 'pickle.loads'),
                *('import cloudpickle', 'cloudpickle.dumps'),
            ),
        }.items()
        for call in calls
    ),
}
MODULES = {'pickle', 'cloudpickle', 'dill', 'marshal', 'shelve', 'joblib', 'yaml', 'code'}
CALLS = {'eval', 'exec', 'compile', '__import__', 'import_module', 'run_path', 'run_module'}


def test_the_package_contains_no_calls_that_could_run_code():
    """Searches the syntax of the package and its scripts for pickles, eval and the like."""
    files = [ROOT / 'main.py', *ROOT.glob('mae_jax/**/*.py'), *ROOT.glob('scripts/**/*.py')]
    assert len(files) > 50
    actual = {
        (str(file.relative_to(ROOT)), what)
        for file in files
        for what in risks(ast.parse(file.read_text()))
    }
    assert actual == ALLOWED


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
def test_the_search_detects_such_calls(code):
    assert list(risks(ast.parse(code)))
    assert not list(risks(ast.parse('np.load(f, allow_pickle=False); model.eval(); re.compile(x)')))


def risks(tree: ast.AST):
    """Yields a description of each call or import that could run code from a file."""
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
    """A pickle that creates a file when it is read, and the path of that file."""
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
    (step / CHECKSUMS).unlink()
    write_checksums(epath.Path(step))
    readers = [mae_jax.load, mae_jax.load_encoder]
    if name == 'config.json':
        readers.append(mae_jax.load_normalize)  # reads only this file
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
    import trap_of_a_config  # noqa: F401  the trap works

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
