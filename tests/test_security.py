"""What `SECURITY.md` promises: of data and weights nothing is run, none leads out of its directory,
none takes more than its bound, and a run of one process listens nowhere.

Thousands of mutated files more are read in `tests/faults/`.
"""

import ast
import contextlib
import io
import json
import lzma
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import commands
import hostile_files
import numpy as np
import pytest
import safetensors.numpy
import tensorstore
import tifffile
from etils import epath
from PIL import Image
from tiny_runs import make_image_folder

import mae_jax
from mae_jax import checksums
from mae_jax.checkpoint import Checkpoints
from mae_jax.data import image_limits
from mae_jax.data.decode import BadImage, decode
from mae_jax.data.sources import folder_source
from mae_jax.data.transforms import eval_transform, train_transform
from mae_jax.errors import UserError
from mae_jax.find_checkpoint import steps
from mae_jax.initialize import inherit
from mae_jax.interop.convert import convert
from mae_jax.interop.tensor_files import read_npz, read_safetensors
from mae_jax.limits import read_json, read_npy, within
from mae_jax.visualize import visualize
from mae_jax.weights import restore_weights

ROOT = Path(__file__).parents[1]
ALLOWED = {
    # Each by file and what is called there; SECURITY.md names them.
    ('scripts/convert_dvae.py', 'import pickle'),  # an unpickler that knows inert classes alone
    ('mae_jax/interop/tokenizers.py', 'import_module'),  # target.tokenizer, of a config
    ('mae_jax/interop/check.py', 'import_module'),  # 'timm' or 'transformers'
    ('mae_jax/ablate.py', 'import_module'),  # 'configs.ablations'
    ('mae_jax/__main__.py', 'import_module'),  # the command that was given
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


@pytest.fixture
def work_directory(pretrained, tmp_path):
    """A copy of a finished run with one checkpoint, under another step."""
    source, _ = pretrained
    target = tmp_path / 'theirs'
    (target / 'checkpoints').mkdir(parents=True)
    (target / 'config.json').write_bytes((source / 'config.json').read_bytes())
    last = max(steps(source / 'checkpoints'))
    step = target / 'checkpoints/2'
    shutil.copytree(source / f'checkpoints/{last}', step)
    return target


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


def test_a_data_set_whose_code_would_be_fetched_is_not_inherited(work_directory, tmp_path):
    path = work_directory / 'config.json'
    config = json.loads(path.read_text())
    config['dataset']['name'] = 'somebody:their_data'
    path.write_text(json.dumps(config))
    ours = commands.make_tiny_config()
    ours.init_from, ours.dataset.name = str(work_directory), None
    with pytest.raises(UserError, match='somebody:their_data.*dataset.name'):
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
    assert not within(name)
    assert within('state/d/0a') and within('checksums.txt') and within('a..b')
    if isinstance(name, str):
        reseal(work_directory / 'checkpoints/2', {name: [0, 0]})
        with pytest.raises(UserError, match='is whole'):
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
    with pytest.raises(UserError, match='no name of a file beside it'):
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
    assert len(folder_source(str(tmp_path / 'images'), 'train').files) < 20
    assert time.monotonic() - began < 5


@pytest.mark.parametrize('make', ['pipe', 'device'])
def test_what_is_no_file_is_no_image(make, tmp_path):
    make_image_folder(tmp_path, '', count=3)
    if make == 'pipe':
        os.mkfifo(tmp_path / 'z.png')
    else:
        (tmp_path / 'z.png').symlink_to('/dev/zero')
    source = folder_source(str(tmp_path), 'train')
    index = [i for i, name in enumerate(source.files) if name == 'z.png']
    source = source if index else folder_source(str(tmp_path), 'validation')
    with pytest.raises(BadImage, match='not a regular file'):
        source[source.files.index('z.png')]


# Nothing takes more than its bound.


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new('RGB', (8, 8)), 'PNG')
    data = data[:16] + struct.pack('>II', width, height) + data[24:]
    return data[:29] + struct.pack('>I', zlib.crc32(data[12:29])) + data[33:]


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new('RGB', (8, 8)), 'JPEG')
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + struct.pack('>HH', height, width) + data[at + 4 :]


def webp_that_claims(width: int, height: int) -> bytes:
    frames = [Image.new('RGB', (8, 8), colour) for colour in ('black', 'red')]
    data = encode(frames[0], 'WEBP', save_all=True, append_images=frames[1:])
    sides = (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
    assert data[12:16] == b'VP8X'
    return data[:24] + sides + data[30:]


def bmp_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new('RGB', (8, 8)), 'BMP')
    return data[:18] + struct.pack('<ii', width, height) + data[26:]


def gif_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new('L', (8, 8)), 'GIF')
    return data[:6] + struct.pack('<HH', width, height) + data[10:]


def tiff_with(data: bytes, tag: int, value: int) -> bytes:
    """One number of its first page becomes another."""
    at = data.index(struct.pack('<H', tag), 8)
    assert struct.unpack_from('<H', data, at + 2)[0] in (3, 4)
    return data[: at + 2] + struct.pack('<HII', 4, 1, value) + data[at + 12 :]


def deep_tiff(shape=(16, 16, 3), **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros(shape, np.uint16), photometric='rgb', **options)
    return buffer.getvalue()


def tiff_of_shape(width: int, height: int, deep: bool) -> bytes:
    data = deep_tiff() if deep else encode(Image.new('RGB', (8, 8)), 'TIFF')
    return tiff_with(tiff_with(data, 256, width), 257, height)


def npy_that_claims(*shape: int) -> bytes:
    buffer = io.BytesIO()
    header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(64)


SIDE = 10_000
"""Squared, it is more than `MAX_IMAGE_PIXELS`, and less than what Pillow itself refuses."""
IMAGES = {
    'png': png_that_claims(SIDE, SIDE),
    'png, long': png_that_claims(1 << 30, 1),
    'jpeg': jpeg_that_claims(SIDE, SIDE),
    'webp': webp_that_claims(SIDE, SIDE),
    'bmp': bmp_that_claims(SIDE, SIDE),
    'gif': gif_that_claims(SIDE, SIDE),
    'tiff': tiff_of_shape(SIDE, SIDE, deep=False),
    'tiff, deep': tiff_of_shape(SIDE, SIDE, deep=True),
    'tiff, huge': tiff_of_shape(1 << 20, 1 << 20, deep=True),
    'npy': npy_that_claims(1 << 20, 1 << 20, 3),
    'npy, more than an integer': npy_that_claims(1 << 40, 1 << 40),
}


@pytest.fixture
def allocations():
    """How many bytes Python and NumPy have allocated at most, since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize('name', IMAGES)
def test_an_image_that_claims_too_much_is_refused_before_it_is_made(name, allocations):
    before = resident_peak()
    with pytest.raises(BadImage, match=': .*(pixels|bytes|limit|has not)'):
        decode({'image': IMAGES[name], 'name': 'a bomb'}, 3)
    assert allocations() < 1 << 20
    assert resident_peak() - before < 16 << 20


def test_a_webp_is_refused_before_pillow_makes_its_canvas(monkeypatch):
    monkeypatch.setattr(Image, 'open', lambda *_, **__: pytest.fail('it was opened'))
    lossless = encode(Image.new('RGBA', (8, 8)), 'WEBP', lossless=True)
    at = lossless.index(b'VP8L') + 9
    for data in (
        IMAGES['webp'],
        lossless[:at] + b'\xff' * 4 + lossless[at + 4 :],  # 14 bits a side
    ):
        with pytest.raises(BadImage, match='pixels, where'):
            decode({'image': data, 'name': 'a.webp'}, 3)


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_long_thin_image_is_not_resized_to_what_it_would_become():
    """2 x 60,000 pixels are few; its short side brought to 256, they are 7.7 million long."""
    record = {'image': encode(Image.new('RGB', (60_000, 2)), 'PNG'), 'name': 'a.png'}
    with pytest.raises(BadImage, match='too long'):
        eval_transform(record, image_size=(224, 224), channels=3)
    crop = dict(crop_scale=(0.2, 1.0), crop_ratio=(0.75, 4 / 3), flip=True)
    options = dict(seed=0, epoch=0, index=0, image_size=(224, 224), channels=3, **crop)
    with pytest.raises(BadImage, match='too long'):
        train_transform(record, crop='fixed', **options)
    assert train_transform(record, **options).shape == (224, 224, 3)  # a square of it


@pytest.mark.parametrize('compression', ['zlib', 'lzma'])
def test_a_tiff_that_unpacks_to_more_than_its_pixels_is_refused(compression, allocations):
    data = deep_tiff((64, 64, 3), compression=compression, metadata=None)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        offset, count = page.tags[273].valueoffset, page.tags[279].valueoffset
    bomb = {'zlib': zlib, 'lzma': lzma}[compression].compress(bytes(64 << 20))
    patched = bytearray(data + bomb)
    for at, value in ((offset, len(data)), (count, len(bomb))):
        patched[at : at + 4] = struct.pack('<I', value)
    del data
    tracemalloc.reset_peak()
    base = allocations()
    with pytest.raises(BadImage, match='unpacks to more'):
        decode({'image': bytes(patched), 'name': 'a.tif'}, 3)
    assert allocations() - base < 16 << 20


def test_the_pages_of_a_tiff_end():
    chain = b'II*\0' + struct.pack('<I', 8)
    chain += b''.join(struct.pack('<HI', 0, 8 + 6 * (i + 1)) for i in range(300))
    looped = chain + struct.pack('<HI', 0, 8 + 6 * 5)
    for data, told in (
        (looped, 'in a circle'),
        (chain[:8] + b''.join(struct.pack('<HI', 0, 14 + 6 * i) for i in range(20_000)), 'pages'),
    ):
        began = time.monotonic()
        with pytest.raises(BadImage, match=told):
            decode({'image': data, 'name': 'a.tif'}, 3)
        assert time.monotonic() - began < 2


def test_the_text_in_a_tiff_does_not_count_its_pages(allocations):
    """OME's says how many there are; 100 million that are not take minutes to be found missing."""
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="8" SizeY="8" SizeC="1" '
        'SizeZ="1" SizeT="100000000"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData/>'
        '</Pixels></Image></OME>'
    )
    array = np.arange(128, dtype=np.uint16).reshape(2, 8, 8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, description=xml, metadata=None)
    image = decode({'image': buffer.getvalue(), 'name': 'a.ome.tif'}, 2)
    np.testing.assert_array_equal(image, array.transpose(1, 2, 0))
    assert allocations() < 8 << 20


def test_a_jpeg_of_a_thousand_scans_is_refused():
    data = encode(Image.new('RGB', (64, 64)), 'JPEG', progressive=True)
    at = data.rindex(b'\xff\xda')
    record = {'image': data[:at] + data[at:-2] * 1000 + data[-2:], 'name': 'a.jpg'}
    with pytest.raises(BadImage, match=f'{image_limits.MAX_JPEG_SCANS} scans'):
        decode(record, 3)
    decode({'image': data, 'name': 'a.jpg'}, 3)


@pytest.mark.parametrize('chunk', ['zTXt', 'iCCP', 'iTXt'])
def test_a_compressed_text_of_a_png_is_not_unpacked_without_end(chunk, allocations):
    packed = zlib.compress(bytes(64 << 20))
    body = {
        'zTXt': b'key\0\0' + packed,
        'iCCP': b'key\0\0' + packed,
        'iTXt': b'key\0\1\0\0\0' + packed,
    }[chunk]
    kind = chunk.encode()
    data = encode(Image.new('RGB', (8, 8)), 'PNG')
    whole = struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    tracemalloc.reset_peak()
    base = allocations()
    with contextlib.suppress(BadImage):
        decode({'image': data[:33] + whole + data[33:], 'name': 'a.png'}, 3)
    assert allocations() - base < 8 << 20


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_npz_that_claims_too_much_is_refused(method, tmp_path, allocations):
    path = tmp_path / 'a.npz'
    with zipfile.ZipFile(path, 'w', method) as archive:
        archive.writestr('x.npy', npy_that_claims(1 << 20, 1 << 20))
    with pytest.raises(UserError, match='has not the'):
        read_npz(path)
    assert allocations() < 1 << 20


def test_a_pth_of_views_on_one_number_is_refused(tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'a.pth'
    torch.save({'model': {'x': torch.zeros(1).expand(1 << 20, 1 << 20)}}, path)
    with pytest.raises(UserError, match='64 times'):
        convert(path, tmp_path / 'ours.safetensors', say=lambda line: None)


def test_a_pth_that_holds_itself_many_times_has_an_end(tmp_path):
    torch = pytest.importorskip('torch')
    nested: dict = {}
    for _ in range(60):
        nested = {'a': nested, 'b': nested}  # 2^60 of them, each once in the file
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
        archive.writestr('x.npy', bytes(300 << 20))
    tracemalloc.reset_peak()
    base = allocations()
    assert path.stat().st_size < 1 << 20
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


def test_an_array_has_the_numbers_that_it_says():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for order in 'CF':
        np.testing.assert_array_equal(read_npy(npy(np.asarray(array, order=order))), array)
    for data in (npy(array)[:-1], npy(array) + b'\0', npy_that_claims(3, 1 << 60)):
        with pytest.raises(ValueError, match='has not the'):
            read_npy(data)


def test_a_checkpoint_of_huge_arrays_is_refused_before_they_are_made(tmp_path):
    """Zeros take no room on disk: 8 GiB of them in a few kilobytes."""
    kernel = np.ones((4, 4), np.float32)
    with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
        checkpoints.save(1, {'params': {'encoder': {'kernel': kernel}}}, {})
    step = tmp_path / 'checkpoints/1'
    base = f'file://{step}/state/'
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
    (key,) = (k for k in store.list().result() if k.endswith(b'kernel/.zarray'))
    zarray = json.loads(store.read(key).result().value)
    store.write(key, json.dumps(zarray | {'shape': [1 << 16, 1 << 15], 'chunks': [4, 4]})).result()
    (step / checksums.CHECKSUMS).unlink()
    checksums.write_checksums(epath.Path(step))
    before = resident_peak()
    with pytest.raises(UserError, match='64 times'):
        restore_weights(tmp_path / 'checkpoints')
    assert resident_peak() - before < 256 << 20


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
