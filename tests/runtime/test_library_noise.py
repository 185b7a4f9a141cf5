"""The command line hides messages of libraries, and no others."""

import logging
import sys
import warnings
from types import SimpleNamespace

import pytest

from mae_jax.runtime.library_noise import silence_libraries


@pytest.fixture
def unraisable(monkeypatch):
    """What reaches `sys.unraisablehook` past the filter; the process is restored afterwards."""
    reports = []
    monkeypatch.setattr(sys, 'unraisablehook', reports.append)
    monkeypatch.setattr(logging.getLogger('absl'), 'filters', [])
    for name in ('jax._src.xla_bridge', 'jax._src.distributed', 'gcsfs', 'google'):
        monkeypatch.setattr(logging.getLogger(name), 'level', logging.INFO)
    with warnings.catch_warnings():
        silence_libraries()
        yield reports


def test_late_reports_of_a_failed_write_are_dropped(unraisable):
    late, other = (
        SimpleNamespace(exc_value=RuntimeError(text)) for text in ('Event loop is closed', 'other')
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert unraisable == [other]


@pytest.mark.usefixtures('unraisable')
@pytest.mark.parametrize(
    ('path', 'is_kept'),
    [('/x/orbax/checkpoint/handlers.py', False), ('/x/mae_jax/training/loop.py', True)],
)
def test_only_records_of_orbax_are_dropped(path, is_kept):
    record = logging.LogRecord('absl', logging.ERROR, path, 1, 'message', (), None)
    assert bool(logging.getLogger('absl').filter(record)) == is_kept


@pytest.mark.usefixtures('unraisable')
@pytest.mark.parametrize('name', ['gcsfs', 'gcsfs.credentials', 'google.auth._default'])
def test_clients_of_buckets_report_no_failed_try(name):
    assert not logging.getLogger(name).isEnabledFor(logging.ERROR)
