"""A local folder whose files appear in a directory of a bucket, sent by a background thread.

What is written a line at a time, as metrics and events are, cannot be written to a bucket: an
object is replaced as a whole. So it is written to a local folder, of which every file that changed
is sent every few seconds, and whenever `flush` is called.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from etils import epath

from mae_jax.errors import Lost, UserError
from mae_jax.files.buckets import as_path, is_remote, service_errors

EVERY_S = 5.0
"""Seconds between two looks for files that changed."""
SHARE = 10
"""Sending takes at most one second of so many: large files are sent less often."""
PATIENCE_S = 300.0
"""Seconds for which `flush` tries again while the service is busy or away."""


class Mirror:
    """A local folder of a run, and its copy in the run's work directory.

    Attributes:
      folder: the local folder. It has the name of the work directory; where that is on a disk, it
        is the work directory itself, and there is nothing to send.
    """

    def __init__(self, workdir: str | os.PathLike, warn: Callable[[str], None]):
        self.folder = epath.Path(workdir)
        self._warn = warn

    def flush(self) -> None:
        """Returns when the work directory has what was written before.

        Raises:
          UserError: the service refuses, or is away for `PATIENCE_S`.
        """


class BucketMirror(Mirror):
    """A `Mirror` of a work directory in a bucket."""

    def __init__(self, workdir: str | os.PathLike, local: str, warn: Callable[[str], None]):
        self._remote = as_path(workdir)
        super().__init__(Path(local, self._remote.name), warn)
        self.folder.mkdir()
        self._sent: dict[str, tuple[int, int]] = {}
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name='mae_jax-mirror', daemon=True)

    def fetch(self, names: Sequence[str]) -> None:
        """Copies files of the work directory into the folder; those that do not exist are left out.

        Raises:
          UserError: as `flush`.
        """
        for name in names:
            with service_errors(self._remote / name):
                if (self._remote / name).exists():
                    local = self.folder / name
                    local.parent.mkdir(parents=True, exist_ok=True)
                    local.write_bytes((self._remote / name).read_bytes())
                    self._sent[name] = _stamp(local)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def flush(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._send()
            except Lost:
                if time.monotonic() > deadline:
                    raise
            time.sleep(EVERY_S)

    def close(self) -> None:
        """Ends the thread, and sends what is left.

        Raises:
          UserError: as `flush`.
        """
        self._closing.set()
        self._thread.join()
        self.flush()

    def _work(self) -> None:
        wait, warned = EVERY_S, False
        while not self._closing.wait(wait):
            start = time.monotonic()
            try:
                self._send()
                warned = False
            except Exception as error:  # `flush` raises it, unless it goes away before
                if not warned:
                    self._warn(f'metrics are not sent for now, and will be: {error}')
                warned = True
            wait = max(EVERY_S, SHARE * (time.monotonic() - start))

    def _send(self) -> None:
        """Sends the files that changed since they were last sent."""
        with self._sending:
            for folder, _, names in os.walk(self.folder):
                for name in sorted(names):
                    path = Path(folder, name)
                    # A name that begins with a dot is that of a file which is being written.
                    if name.startswith('.') or not path.is_file():
                        continue
                    relative, stamp = str(path.relative_to(self.folder)), _stamp(path)
                    if self._sent.get(relative) != stamp:
                        with service_errors(self._remote / relative):
                            (self._remote / relative).write_bytes(path.read_bytes())
                        self._sent[relative] = stamp


@contextlib.contextmanager
def mirrored(
    workdir: str | os.PathLike, fetch: Sequence[str] = (), warn: Callable[[str], None] = print
) -> Iterator[Mirror]:
    """Yields the `Mirror` of a work directory; at the end all of it is sent.

    Args:
      workdir: on a disk or in a bucket.
      fetch: files of a work directory in a bucket that are to lie in the folder from the start.
      warn: called with a line when files cannot be sent for a while, and at the end.

    Raises:
      UserError: the service refuses, or is away for long; an error of the block comes first.
    """
    if not is_remote(workdir):
        yield Mirror(workdir, warn)
        return
    with tempfile.TemporaryDirectory(prefix='mae_jax_') as local:
        mirror = BucketMirror(workdir, local, warn)
        mirror.fetch(fetch)
        mirror.start()
        try:
            yield mirror
        except BaseException:
            try:
                mirror.close()
            except UserError as error:
                warn(f'the last metrics are not in {workdir}: {error}')
            raise
        mirror.close()


def _stamp(path: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size
