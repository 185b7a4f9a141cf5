"""Flags of XLA: whose value counts, and that the installed XLA knows them."""

import os
import subprocess
import sys

import pytest

from mae_jax.runtime import xla_flags
from mae_jax.runtime.xla_flags import leave_out_absent_tpu, set_xla_flags, uses_cpu

LATENCY = '--xla_gpu_enable_latency_hiding_scheduler=true'
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'


@pytest.fixture
def environment(monkeypatch):
    """The environment of a machine with a GPU where the user has set nothing."""
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda,cpu')
    monkeypatch.setenv('XLA_FLAGS', '')  # restored afterwards, whatever a test sets
    del os.environ['XLA_FLAGS']
    return os.environ


def test_a_gpu_gets_the_flags(environment):
    set_xla_flags()
    assert environment['XLA_FLAGS'] == LATENCY


def test_determinism_is_asked_for_only_where_the_config_does(environment):
    set_xla_flags(deterministic=True)
    assert environment['XLA_FLAGS'] == f'{LATENCY} {DETERMINISTIC}'


def test_a_flag_of_the_user_is_kept_and_not_given_twice(environment):
    mine = '--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/x'
    environment['XLA_FLAGS'] = mine
    set_xla_flags(deterministic=True)
    assert environment['XLA_FLAGS'] == f'{DETERMINISTIC} {mine}'
    set_xla_flags(deterministic=True)
    assert environment['XLA_FLAGS'] == f'{DETERMINISTIC} {mine}'


def test_a_flag_without_a_value_counts_as_given(environment):
    environment['XLA_FLAGS'] = '--xla_gpu_deterministic_ops'
    set_xla_flags(deterministic=True)
    assert environment['XLA_FLAGS'] == f'{LATENCY} --xla_gpu_deterministic_ops'


@pytest.mark.parametrize('platforms', ['cpu', 'tpu', 'tpu,cpu'])
def test_nothing_is_set_where_no_gpu_is_used(environment, platforms):
    environment['JAX_PLATFORMS'] = platforms
    set_xla_flags(deterministic=True)
    assert 'XLA_FLAGS' not in environment


@pytest.mark.parametrize('plugin, flags', [('xla_cuda13', LATENCY), ('xla_other', None)])
def test_without_jax_platforms_the_installed_plugin_decides(
    environment, monkeypatch, tmp_path, plugin, flags
):
    (tmp_path / 'jax_plugins' / plugin).mkdir(parents=True)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])  # a namespace package, as JAX's plugins have
    del environment['JAX_PLATFORMS']
    set_xla_flags()
    assert environment.get('XLA_FLAGS') == flags


@pytest.mark.parametrize(
    'chips, platforms, expected',
    [([], None, 'cpu'), (['/dev/accel0'], None, None), ([], 'tpu,cpu', 'tpu,cpu')],
)
def test_libtpu_without_a_chip_is_there_to_compile_alone(
    environment, monkeypatch, tmp_path, chips, platforms, expected
):
    (tmp_path / 'libtpu.py').touch()
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    monkeypatch.setattr(xla_flags.glob, 'glob', lambda pattern: chips)
    del environment['JAX_PLATFORMS']
    environment.update({'JAX_PLATFORMS': platforms} if platforms else {})
    assert uses_cpu() == (expected == 'cpu')
    leave_out_absent_tpu()
    assert environment.get('JAX_PLATFORMS') == expected


def test_the_installed_xla_knows_every_flag_and_jax_is_not_started_to_set_them():
    program = (
        'import os, sys\n'
        'from mae_jax.runtime.xla_flags import set_xla_flags\n'
        'set_xla_flags(deterministic=True)\n'
        'assert "jax" not in sys.modules\n'
        'print(os.environ["XLA_FLAGS"])\n'
        'os.environ["JAX_PLATFORMS"] = "cpu"  # XLA ends the process at a flag it does not know\n'
        'import jax\n'
        'print(jax.device_count())\n'
    )
    environment = os.environ | {'JAX_PLATFORMS': 'cuda', 'XLA_FLAGS': ''}
    done = subprocess.run(
        [sys.executable, '-c', program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f'{LATENCY} {DETERMINISTIC}', '1'], done.stderr
    assert done.stderr == ''
