"""Knows how a directory in a bucket, `gs://bucket/run`, differs from one on a disk.

An object is written whole or not at all, cannot be appended to, and is reached through a service
that may refuse, be busy or be away. Nothing else in the package tells the two apart.
"""

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Iterator

from etils import epath

from mae_jax.errors import Lost, UserError

WORK_DIRECTORIES = ('gs://',)
"""Where a run may live besides disks: where Orbax can write checkpoints."""
SCHEMES = (*WORK_DIRECTORIES, 's3://', 'az://', 'hf://')
"""What `epath` can read files from."""
LIBRARIES = ('gcsfs', 'google', 'aiohttp', 'requests', 's3fs', 'botocore', 'fsspec')
STATUSES = {
    'UNAUTHENTICATED': 401,
    'PERMISSION_DENIED': 403,
    'RESOURCE_EXHAUSTED': 429,
    'UNAVAILABLE': 503,
    'DEADLINE_EXCEEDED': 504,
}
"""How errors of TensorStore begin -> the status of HTTP that it stands for."""

EMULATED = {
    'TENSORSTORE_GCS_HTTP_URL': '{}',
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',  # TensorStore
    'CLOUD_STORAGE_EMULATOR_ENDPOINT': '{}',  # ArrayRecord
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # would ask Google itself about the bucket
}
"""Where STORAGE_EMULATOR_HOST names an emulator, what leads libraries that do not read it there."""


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is that of a service, such as `gs://bucket/run`, and not of a disk."""
    return '://' in os.fspath(path)


def as_path(path: str | os.PathLike) -> epath.Path:
    """Returns a path object, local or remote, once what reads and writes there is set up.

    Raises:
      UserError: there is nothing that reads such a path.
    """
    path = os.fspath(path)
    if is_remote(path) and not path.startswith(SCHEMES):
        raise UserError(
            f'{path} cannot be read: give a path on a disk, or one that begins with '
            f'{", ".join(SCHEMES)}.'
        )
    if path.startswith('gs://'):
        set_up_google()
    return epath.Path(path)


@functools.cache
def set_up_google() -> None:
    """Prepares the clients of Google Cloud Storage in this process, before the first is used."""
    # etils would import TensorFlow where it is installed, which no run does.
    os.environ.setdefault('EPATH_USE_TF', 'false')
    if emulator := os.environ.get('STORAGE_EMULATOR_HOST'):
        for name, value in EMULATED.items():
            os.environ.setdefault(name, value.format(emulator))
    if any(importlib.util.find_spec(name) is None for name in ('fsspec', 'gcsfs')):
        raise UserError("gs:// needs gcsfs: pip install 'mae_jax[gcs]'.")
    import fsspec.config

    # TensorStore and other processes write past gcsfs, whose listings would not show it.
    for name in ('gs', 'gcs'):
        fsspec.config.conf.setdefault(name, {}).setdefault('use_listings_cache', False)


def check_work_directory(path: str | os.PathLike) -> None:
    """Raises a UserError for a path of a service where a run cannot live."""
    if is_remote(path) and not os.fspath(path).startswith(WORK_DIRECTORIES):
        raise UserError(
            f'{path} cannot be a work directory, for Orbax writes checkpoints only to disks and to '
            f'{", ".join(WORK_DIRECTORIES)}: choose another --workdir, or mount the bucket.'
        )


def make_directory(path: str | os.PathLike) -> None:
    """Creates a directory and its parents; in a bucket there are none to create.

    Raises:
      OSError: it cannot be created.
      UserError: the bucket does not exist, or the service refuses.
    """
    if not is_remote(path):
        epath.Path(path).mkdir(parents=True, exist_ok=True)
        return
    path = as_path(path)
    bucket = '/'.join(os.fspath(path).split('/')[:3])
    with service_errors(path):
        if not epath.Path(bucket).exists():
            raise UserError(
                f'{bucket} does not exist, or this account cannot see it: create the bucket, or '
                f'correct the name.'
            )


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a text file in one go: a reader sees the old content or the new."""
    if is_remote(path):
        with service_errors(path):
            path.write_text(text)
        return
    fresh = path.with_name(f'.{path.name}')
    fresh.write_text(text)
    fresh.replace(path)


def append(path: epath.Path, text: str) -> None:
    """Adds text to a file, which is created where there is none."""
    if is_remote(path):
        with service_errors(path):
            path.write_text((path.read_text() if path.exists() else '') + text)
        return
    with path.open('a') as file:
        file.write(text)


@contextlib.contextmanager
def service_errors(path: str | os.PathLike | None = None) -> Iterator[None]:
    """Raises what a service answered in the block as a sentence, a UserError.

    Errors of other kinds, a file that does not exist among them, pass as they are.

    Args:
      path: what is read or written, for the message.

    Raises:
      Lost: the service is busy or away, after several tries: the same command may work later.
      UserError: it refuses.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if problem := service_problem(error, path):
            raise problem from error
        raise


def service_problem(
    error: BaseException, path: str | os.PathLike | None = None
) -> UserError | None:
    """Returns the error for the user where a service refused, is busy or is away; None elsewhere.

    Libraries raise it under many names, some of them within others.
    """
    if isinstance(error, UserError):
        return error
    where = os.fspath(path) if path is not None else 'the bucket'
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        status = _status(error)
        if status == 401:
            return UserError(
                f'{where} needs credentials, and there are none that work: log in with `gcloud '
                'auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.'
            )
        if status == 403:
            return UserError(
                f'{where} may not be read or written by this account: grant it the roles Storage '
                'Object Admin and Storage Legacy Bucket Reader, or choose another bucket.'
            )
        if status is not None:
            return Lost(
                f'{where} cannot be reached: the service {_REASONS.get(status, "is away")}, after '
                'several tries. Saved steps are intact: run the same command to go on.'
            )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


_REASONS = {429: 'limits the rate of requests (429)', 0: 'does not answer'} | {
    status: f'is not available ({status})' for status in (408, 500, 502, 503, 504)
}


def _status(error: BaseException) -> int | None:
    """Returns the status that a service answered: of HTTP, 0 where it did not answer, or None."""
    library, text, kind = type(error).__module__.split('.')[0], str(error), type(error).__name__
    if isinstance(error, OSError) and text.startswith('Forbidden'):  # gcsfs
        return 403
    word = text.split(':')[0]
    if word in STATUSES and re.search(r'gs://|tensorstore|storage/v1', text):
        return STATUSES[word]
    if library not in LIBRARIES:
        return None
    if kind in ('DefaultCredentialsError', 'RefreshError', 'NonRetryableError', 'Unauthorized'):
        return 401
    code = getattr(error, 'code', None)
    if f'{code}'.isdecimal() and int(code) in (401, 403, *_REASONS):
        return int(code)
    if kind == 'ProxyError':  # what gcsfs makes of 502
        return 502
    away = ('Connect', 'Timeout', 'ClientOSError', 'Payload', 'TransportError', 'RetryError')
    return 0 if any(word in kind for word in away) else None
