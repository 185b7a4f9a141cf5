"""A trace of a few steps, written while the loop runs."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from mae_jax.errors import UserError
from mae_jax.runtime.profile import profiled_steps


def names_in(folder) -> set[str]:
    (trace,) = folder.glob('plugins/profile/*/*.trace.json.gz')
    events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
    return {event.get('name') for event in events}


def run(folder, steps, last: int) -> None:
    """Runs steps 1 ... last, each under a name of its own."""
    with profiled_steps(steps, folder) as profile:
        for step in range(1, last + 1):
            profile(step, None)
            with jax.profiler.TraceAnnotation(f'step {step}'):
                jnp.ones(3).sum().block_until_ready()
        profile(last + 1, None)


@pytest.mark.parametrize(('steps', 'last', 'expected'), [((2, 3), 5, {2, 3}), ((4, 9), 5, {4, 5})])
def test_the_trace_holds_these_steps_and_no_other(tmp_path, steps, last, expected):
    run(tmp_path, steps, last)
    names = {name for name in names_in(tmp_path) if str(name).startswith('step ')}
    assert names == {f'step {step}' for step in expected}


def test_without_steps_nothing_is_written(tmp_path):
    run(tmp_path, None, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('steps', [(3, 2), (0, 2), (5,)])
def test_steps_that_are_no_range_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match=r'profile_steps=\(.*\) must be \(from, to\)'):
        run(tmp_path, steps, 1)
