"""Directories in buckets of a real server: what is written, held, refused, and sent later."""

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest
from helpers.bucket_server import clients_of, failing_server

from mae_jax.errors import Lost, UserError
from mae_jax.files import lease, mirror
from mae_jax.files.buckets import append, as_path, make_directory, service_problem, write_whole
from mae_jax.files.lock import claim
from mae_jax.files.mirror import mirrored

RUN = 'gs://bucket/run'


@pytest.fixture(scope='module')
def failing(tmp_path_factory):
    root = tmp_path_factory.mktemp('buckets') / 'root'
    with failing_server(root) as server, clients_of(server.url):
        yield server


@pytest.fixture
def server(failing):
    """A server that works, and has no work directory."""
    failing.answer = lambda method, path: None
    if as_path(RUN).exists():
        as_path(RUN).rmtree()
    return failing


@pytest.fixture
def quick(monkeypatch):
    """The mirror looks every hundredth of a second, and has little patience."""
    monkeypatch.setattr(mirror, 'EVERY_S', 0.01)
    monkeypatch.setattr(mirror, 'PATIENCE_S', 0.1)


def eventually(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read(name):
    path = as_path(f'{RUN}/{name}')
    return path.read_text() if path.exists() else None


@pytest.mark.usefixtures('server')
def test_what_is_appended_to_an_object_follows_what_it_has():
    path = as_path(f'{RUN}/results.jsonl')
    append(path, '1\n')
    append(path, '2\n')
    assert path.read_text() == '1\n2\n'
    write_whole(path, '3\n')
    assert path.read_text() == '3\n'
    assert [each.name for each in as_path(RUN).iterdir()] == ['results.jsonl']


@pytest.mark.usefixtures('server', 'quick')
def test_what_is_written_locally_arrives_without_a_call():
    with mirrored(RUN) as folder:
        with (folder.folder / 'metrics.jsonl').open('a') as file:
            for line in ('1\n', '2\n'):
                file.write(line)
                file.flush()
                eventually(lambda line=line: (read('metrics.jsonl') or '').endswith(line))
        assert read('metrics.jsonl') == '1\n2\n'
        (folder.folder / 'images').mkdir()
        (folder.folder / 'images' / '.half').write_text('')
        (folder.folder / 'images' / 'whole.png').write_text('')
        eventually(lambda: read('images/whole.png') is not None)
    assert read('images/.half') is None
    assert folder.folder.name == 'run' and not folder.folder.exists()


@pytest.mark.usefixtures('server')
def test_flush_returns_when_all_is_sent_and_unchanged_files_are_sent_once(server):
    sent = []

    def count(method, path):
        sent.extend(re.findall('[?&]name=([^&]*)', path))

    server.answer = count
    with mirrored(RUN) as folder:
        for name in ('a', 'b'):
            (folder.folder / name).write_text(name)
            folder.flush()
            assert read(name) == name
        folder.flush()
    assert [name for name, _ in itertools.groupby(sent)] == ['run/a', 'run/b']
    assert sent.count('run/a') == sent.count('run/b')  # of the requests that an upload takes


@pytest.mark.usefixtures('server')
def test_a_run_that_goes_on_finds_its_files():
    write_whole(as_path(f'{RUN}/metrics.jsonl'), '1\n')
    with mirrored(RUN, fetch=('metrics.jsonl', 'wandb/run_id')) as folder:
        with (folder.folder / 'metrics.jsonl').open('a') as file:
            file.write('2\n')
        assert not (folder.folder / 'wandb').exists()
    assert read('metrics.jsonl') == '1\n2\n'


@pytest.mark.usefixtures('quick')
def test_an_outage_is_reported_once_and_what_was_written_arrives_after_it(server, monkeypatch):
    monkeypatch.setattr(mirror, 'service_errors', away := Away())
    lines = []
    with mirrored(RUN, warn=lines.append) as folder:
        away.now = True
        (folder.folder / 'metrics.jsonl').write_text('1\n')
        eventually(lambda: away.tries > 3)
        with pytest.raises(Lost):
            folder.flush()
        away.now = False
        eventually(lambda: read('metrics.jsonl') == '1\n')
    assert len(lines) == 1 and 'not sent for now' in lines[0]


class Away:
    """Stands for `service_errors` while a service is away: gcsfs itself tries for a minute."""

    now, tries = False, 0

    def __call__(self, path):
        return self

    def __enter__(self):
        self.tries += self.now
        if self.now:
            raise Lost('the service is away')

    def __exit__(self, *exception):
        pass


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('error', [None, RuntimeError('of the run')])
def test_what_cannot_be_sent_at_the_end_is_an_error_but_not_in_place_of_another(server, error):
    lines = []

    def write():
        with mirrored(RUN, warn=lines.append) as folder:
            server.answer = lambda method, path: 403
            (folder.folder / 'metrics.jsonl').write_text('1\n')
            if error:
                raise error

    with pytest.raises(type(error) if error else UserError) as raised:
        write()
    assert 'may not be read or written' in (lines[-1] if error else str(raised.value))


@pytest.mark.parametrize(
    ('status', 'message'),
    [
        (403, 'gs://bucket/run may not be read or written by this account'),
        (401, 'gs://bucket/run needs credentials'),
        (None, 'gs://missing does not exist'),
    ],
)
def test_what_the_service_refuses_is_one_sentence(server, status, message):
    server.answer = lambda method, path: status
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        make_directory(RUN if status else 'gs://missing/run')
    assert type(raised.value) is UserError and str(raised.value).count('. ') == 0


def test_a_service_that_is_away_or_busy_is_worth_another_try():
    gcsfs = pytest.importorskip('gcsfs')
    busy = gcsfs.retry.HttpError({'code': 429, 'message': 'slow down'})
    stored = ValueError('UNAVAILABLE: Error writing "gs://bucket/run/x": HTTP response code: 503')
    for error, text in ((busy, 'limits the rate of requests'), (stored, 'not available (503)')):
        wrapped = RuntimeError('saving')
        wrapped.__cause__ = error
        problem = service_problem(wrapped, RUN)
        assert type(problem) is Lost and text in str(problem)


@pytest.mark.parametrize(
    'error',
    [
        FileNotFoundError('gs://bucket/x'),
        OSError(28, 'No space left on device'),
        ValueError('RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes'),
        RuntimeError('UNAVAILABLE: the coordination service'),
        ConnectionError('Connection closed by peer'),
    ],
)
def test_errors_of_others_are_not_taken_for_the_service_s(error):
    assert service_problem(error) is None


@pytest.mark.parametrize('path', ['ftp://host/run', 'memory://run'])
def test_a_scheme_that_nothing_reads_is_refused(path):
    with pytest.raises(UserError, match='begins with gs://, s3://'):
        as_path(path)


def test_without_gcsfs_the_extra_is_named(server, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gcsfs', None)
    from mae_jax.files import buckets

    buckets.set_up_google.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'mae_jax\[gcs\]'"):
        as_path(RUN)


@pytest.mark.usefixtures('server')
def test_a_directory_is_held_while_its_process_renews_it_and_free_afterwards(monkeypatch):
    monkeypatch.setattr(lease, 'RENEW_S', 0.05)
    monkeypatch.setattr(lease, '_has_ended', lambda holder: False)
    with claim(RUN):
        assert read('.lock').split()[:2] == [socket.gethostname(), str(os.getpid())]
        with pytest.raises(UserError, match=f'held by another process .process {os.getpid()}'):
            claim(RUN).__enter__()
    assert read('.lock') is None
    with claim(RUN):
        pass


@pytest.mark.usefixtures('server')
def test_a_process_of_another_machine_that_renews_nothing_loses_its_hold(monkeypatch):
    monkeypatch.setattr(lease, 'EXPIRES_S', 1.5)
    write_whole(as_path(f'{RUN}/.lock'), 'elsewhere 1 0')
    start = time.monotonic()
    with claim(RUN):
        assert 1 < time.monotonic() - start < 10


@pytest.mark.usefixtures('server')
def test_a_process_of_this_machine_that_was_killed_loses_its_hold_at_once():
    ended = subprocess.Popen(['true'])
    ended.wait()
    write_whole(as_path(f'{RUN}/.lock'), f'{socket.gethostname()} {ended.pid} 0')
    start = time.monotonic()
    with claim(RUN):
        assert time.monotonic() - start < 10


@pytest.mark.slow
@pytest.mark.usefixtures('server')
def test_a_process_whose_hold_was_taken_over_ends():
    script = (
        'import sys, time\n'
        'from mae_jax.files import lease\n'
        'from mae_jax.files.lock import claim\n'
        'lease.RENEW_S = 0.1\n'
        'with claim(sys.argv[1]):\n'
        '    print("held", flush=True)\n'
        '    time.sleep(100)\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', script, RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b'held\n'
    write_whole(as_path(f'{RUN}/.lock'), 'elsewhere 7 0')
    assert process.wait(60) == 1
    assert b'was taken over by process 7 on elsewhere' in process.stderr.read()
    assert read('.lock') == 'elsewhere 7 0'


@pytest.mark.usefixtures('server')
def test_a_config_and_its_directory_are_read_back():
    from mae_jax.config.saved import load_config

    write_whole(as_path(f'{RUN}/config.json'), json.dumps({'seed': 3}))
    assert load_config(RUN).seed == 3
    with pytest.raises(UserError, match='is no work directory'):
        load_config('gs://bucket/other')
