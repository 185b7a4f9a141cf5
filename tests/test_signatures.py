"""Shapes in signatures are checked in tests, and only in tests."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import ROOT
from jaxtyping import TypeCheckError

from mae_jax.models.patches import patchify
from mae_jax.pretext.masking import masking_from_noise
from mae_jax.tasks.preprocess import normalize


@pytest.mark.parametrize(
    'call',
    [
        lambda: patchify(np.zeros((4, 4, 3)), 2),
        lambda: masking_from_noise(jnp.zeros((2, 4), int), 1),
        lambda: normalize('image', scale=1.0, mean=(0.0,), std=(1.0,)),
    ],
    ids=['models', 'pretext', 'tasks'],
)
def test_a_call_against_a_signature_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_the_package_installs_no_check():
    sources = [path.read_text() for path in (ROOT / 'mae_jax').glob('**/*.py')]
    assert len(sources) > 50
    assert not any('beartype' in source or 'install_import_hook' in source for source in sources)
