"""Importing the package imports no JAX, and leaves the process as it was."""

import ast
import subprocess
import sys

from helpers.commands import ROOT

SCRIPT = """
import faulthandler, logging, os, signal, sys, threading, warnings

def state():
    loggers = {'': logging.root, **logging.root.manager.loggerDict}
    loggers = {n: x for n, x in loggers.items() if isinstance(x, logging.Logger)}
    jax, absl = sys.modules.get('jax'), sys.modules.get('absl.flags')
    return {
        'hooks': (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        'loggers': {
            name: (logger.level, *logger.handlers, *logger.filters)
            for name, logger in loggers.items()
            if logger.level or logger.handlers or logger.filters
        },
        'warnings': [*warnings.filters, warnings.showwarning],
        'signals': [signal.getsignal(number) for number in signal.valid_signals()],
        'environment': dict(os.environ),
        'paths': (os.getcwd(), *sys.path),
        'faulthandler': faulthandler.is_enabled(),
        'jax.config': jax and {n: getattr(jax.config, n, None) for n in jax.config.values},
        'devices': jax and dict(jax._src.xla_bridge._backends),
        'flags': absl and set(absl.FLAGS),
    }

def check(before, name):
    after = state()
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed, f'{name} changes {changed}'

before = state()
import mae_jax
check(before, 'mae_jax')
assert not {'jax', 'flax', 'numpy'} & {*sys.modules}
assert {*mae_jax.__all__} <= {*dir(mae_jax)}

# Libraries change the process when they are imported: absl its logger, JAX its flags.
import clu.asynclib, clu.metrics, flax.linen, grain, jax, ml_collections, optax, orbax.checkpoint
import sklearn.linear_model, sklearn.neighbors
before = state()
import mae_jax.checkpoints.manager
check(before, 'mae_jax.checkpoints.manager')
for name in mae_jax.__all__:
    getattr(mae_jax, name)
    check(before, f'mae_jax.{name}')
"""


def test_importing_the_package_changes_nothing_in_the_process():
    command = [sys.executable, '-c', SCRIPT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_only_public_names_are_completed():
    code = 'import mae_jax, mae_jax.errors; print(*(n for n in dir(mae_jax) if n[:2] != "__"))'
    command = [sys.executable, '-c', f'{code}; print(mae_jax.__version__)']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names, version = done.stdout.splitlines()
    tree = ast.parse((ROOT / 'mae_jax' / '__init__.py').read_text())
    (static,) = (node for node in tree.body if isinstance(node, ast.If))  # TYPE_CHECKING
    assert names.split() == sorted(alias.asname for each in static.body for alias in each.names)
    assert 'run' in names.split() and version.count('.') == 2
