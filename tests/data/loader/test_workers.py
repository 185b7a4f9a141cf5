"""Worker processes that are killed, stopped or hang, and the streams that read from them."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.images import smooth_picture

from mae_jax.data.loader.batches import make_loader
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.sources.make import make_source
from mae_jax.errors import UserError


def photo_loader(root, **options):
    source = make_source('folder', 'train', path=str(root))
    sizes = {'batch_size': 12, 'rows': range(12), 'image_size': (16, 16)}
    return make_loader(source, **sizes, seed=0, **options)


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def becomes_true(condition, seconds=20):
    """Returns whether a condition becomes true within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def ends(pid):
    return becomes_true(lambda: not alive(pid))


@pytest.mark.slow
def test_threads_and_worker_processes_give_the_same_stream(photo_folder):
    root = photo_folder(40)
    with photo_loader(root).iterate(2, 10) as batches:
        threads = list(batches)
    for workers in (1, 2):
        with photo_loader(root, workers=workers, threads=2).iterate(2, 10) as batches:
            processes = list(batches)
            pids = batches.worker_pids()
        assert len(processes) == 10
        assert len(pids) == workers and not any(alive(pid) for pid in pids)
        for batch, other in zip(threads, processes, strict=True):
            np.testing.assert_array_equal(batch['image'], other['image'])
            np.testing.assert_array_equal(batch['label'], other['label'])


def make_photos(root: Path) -> Path:
    root.mkdir()
    for i in range(20):
        smooth_picture(i, 40, 30).save(root / f'{i}.jpg')
    return root


class Ended(NamedTuple):
    """A stream of a worker process: it got signals, then read an image that was damaged."""

    batches_after_signals: int
    damaged: str
    error: UserError
    worker_ended: bool


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    root = make_photos(tmp_path_factory.mktemp('ended') / 'photos')
    damaged = make_source('folder', 'train', path=str(root))[5]['name']
    with photo_loader(root, workers=1, threads=1).iterate(0) as batches:
        next(batches)
        (pid,) = batches.worker_pids()
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        count = len(list(itertools.islice(batches, 20)))
        Path(damaged).write_bytes(b'no image')
        with pytest.raises(UserError) as error:
            for _ in range(100):
                next(batches)
        with pytest.raises(StopIteration):
            next(batches)
        return Ended(count, damaged, error.value, ends(pid))


@pytest.mark.slow
def test_a_worker_ignores_ctrl_c_and_sigterm(ended):
    assert ended.batches_after_signals == 20


@pytest.mark.slow
def test_an_unreadable_image_is_named_from_a_worker_too(ended):
    assert ended.damaged in str(ended.error) and 'on_error' in str(ended.error)


@pytest.mark.slow
def test_an_error_closes_the_stream_and_ends_the_worker(ended):
    assert ended.worker_ended


def test_a_killed_worker_ends_the_stream_and_is_named(photo_folder):
    with photo_loader(photo_folder(20), workers=2, threads=1).iterate(0) as batches:
        next(batches)
        pids = batches.worker_pids()
        assert len(pids) == 2
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(UserError, match=rf'worker 1 \(process {pids[1]}\).*SIGKILL'):
            for _ in range(1000):
                next(batches)
        assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_a_stopped_worker_ends_the_stream_after_the_timeout(photo_folder):
    with photo_loader(photo_folder(20), workers=1, threads=1).iterate(0) as batches:
        next(batches)
        (pid,) = batches.worker_pids()
        batches.timeout_s = 1.5
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(UserError, match=rf'1\.5 s.*process {pid}\) is stopped'):
            for _ in range(1000):
                next(batches)
        assert ends(pid)


class Hanging:
    """A source of which reading example 5 blocks until `released` is set."""

    def __init__(self, source):
        self.source, self.released = source, threading.Event()

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == 5:
            self.released.wait()
        return self.source[index]


@pytest.mark.slow
def test_a_read_that_hangs_ends_the_stream_after_the_timeout(photo_folder):
    source = Hanging(make_source('folder', 'train', path=str(photo_folder(20))))
    sizes = {'batch_size': 12, 'rows': range(12), 'image_size': (16, 16)}
    loader = make_loader(source, **sizes, seed=0, timeout_s=1, threads=2)
    try:
        with pytest.raises(UserError, match=r'1 s: a read may hang.*dataset\.timeout_s'):
            list(loader.iterate(0, 4))
    finally:  # ends the thread that reads
        source.released.set()


TRAINER = """
import json, sys, time
from absl import app
import mae_jax.data.sources.tfds
from mae_jax.data.loader.batches import make_loader
from mae_jax.data.sources.make import make_source

def main(argv):
    source = make_source('folder', 'train', path=argv[1])
    loader = make_loader(source, batch_size=12, rows=range(12), seed=0, image_size=(16, 16),
                         workers=1, threads=1)
    batches = loader.iterate(0)
    next(batches)
    print(json.dumps([*batches.worker_pids(), sorted(sys.modules)]), flush=True)
    time.sleep(100)

if __name__ == '__main__':
    app.run(main)
"""


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
    """Returns a process that reads batches, the id of its worker, and the modules it imports."""
    folder = tmp_path_factory.mktemp('trainer')
    (folder / 'trainer.py').write_text(TRAINER)
    process = subprocess.Popen(
        [sys.executable, folder / 'trainer.py', make_photos(folder / 'photos')],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, *json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_reading_images_imports_neither_tensorflow_nor_torch(trainer):
    _, _, modules = trainer
    assert 'grain' in modules and 'tensorflow_datasets' in modules
    assert not {'tensorflow', 'torch'}.intersection(modules)


@pytest.mark.slow
def test_a_worker_imports_neither_jax_nor_grain_nor_the_script_of_the_run(trainer):
    _, pid, _ = trainer
    libraries = Path(f'/proc/{pid}/maps').read_text()
    assert 'numpy' in libraries
    assert not any(name in libraries for name in ('jaxlib', '/grain/', 'tensorflow'))


@pytest.mark.slow
def test_workers_end_with_a_trainer_that_is_killed(trainer):
    process, pid, _ = trainer
    assert alive(pid)
    process.kill()
    process.wait()
    assert ends(pid)


SCRIPT = """
import numpy as np
from mae_jax.data.loader.batches import make_loader

print('the script runs', flush=True)

class Own:
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return {'image': np.full((4, 4, 1), index, np.uint8), 'label': index, 'name': str(index)}

loader = make_loader(Own(), batch_size=8, rows=range(8), seed=0, image_size=(4, 4), channels=1,
                     workers=2)
with loader.iterate(0, 5) as batches:
    labels = [batch['label'] for batch in batches]
print(sorted(np.concatenate(labels).tolist()) == list(range(40)))
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_can_use_workers_with_its_own_source(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, tmp_path / 'script.py'],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split('\n') == ['the script runs', 'True', ''], run.stderr


@pytest.mark.slow
def test_a_source_that_cannot_be_pickled_is_refused_with_the_remedy(photo_folder):
    source = Hanging(make_source('folder', 'train', path=str(photo_folder(20))))
    sizes = {'batch_size': 12, 'rows': range(12), 'image_size': (16, 16)}
    loader = make_loader(source, **sizes, seed=0, workers=1)
    message = r'cannot be sent to worker .* dataset\.workers=0'
    with loader.iterate(0) as batches, pytest.raises(UserError, match=message):
        next(batches)


@pytest.mark.slow
def test_more_tasks_and_results_than_fit_between_the_processes_do_not_block_them():
    source = ArraySource(np.zeros((3000, 4, 4, 1), np.uint8), np.arange(3000))
    sizes = {'batch_size': 3000, 'rows': range(3000), 'image_size': (4, 4), 'channels': 1}
    options = {'workers': 1, 'threads': 100, 'timeout_s': 60, 'crop_scale': (1, 1)}
    with make_loader(source, **sizes, seed=0, **options).iterate(0, 4) as batches:
        for batch in batches:
            np.testing.assert_array_equal(np.sort(batch['label']), np.arange(3000))


class Broken(Exception):
    """An error that cannot be made again from its pickle."""

    def __init__(self, first, second):
        super().__init__(f'{first} {second}')


class Breaking:
    """A source of arrays whose example 5 raises `Broken`; also arrays that workers share."""

    def __init__(self):
        self.images = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4, 1)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 5:
            raise Broken('a read', 'failed')
        return {'image': self.images[index], 'label': 0, 'name': str(index)}


@pytest.mark.slow
def test_errors_that_cannot_be_sent_come_with_their_traceback(tmp_path, monkeypatch):
    code = Path(__file__).read_text()
    start, end = code.index('class Broken('), code.index('@pytest.mark.slow\ndef test_errors_that')
    (tmp_path / 'breaking.py').write_text('import numpy as np\n' + code[start:end])
    monkeypatch.syspath_prepend(tmp_path)
    import breaking

    options = {'batch_size': 10, 'rows': range(10), 'image_size': (4, 4), 'channels': 1}
    loader = make_loader(breaking.Breaking(), **options, seed=0, workers=1)
    with loader.iterate(0) as batches, pytest.raises(RuntimeError, match='Broken: a read failed'):
        list(batches)
