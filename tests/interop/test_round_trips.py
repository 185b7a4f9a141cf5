"""Every tensor of another library's checkpoint -> ours -> that library's, the same to the bit.

Names and shapes are those that the libraries' own models have (`tests/golden/keys`); the values
are random bits.
"""

import keys
import numpy as np
import pytest

from mae_jax.interop.foreign import recognise
from mae_jax.interop.translate import to_ours, to_theirs

PARAMETERS = {
    'official_full_base': 111_907_840,
    'official_full_large': 329_541_888,
    'official_full_huge': 657_074_508,
}
"""Both position tables included."""

INNER = {  # a checkpoint of several networks -> which of its tensors the encoder's are
    'moco_v3_small': 'module.base_encoder.',
    'dino_small_backbone': '',
    'dino_small_teacher': 'backbone.',
    'dino_small_student': 'module.backbone.',
}


def expected(name, tensors):
    """What should come back: names as Hugging Face's hub has them, the encoder's part alone."""
    if name.startswith('huggingface'):
        kind, size = name.split('_')[1], name.split('_')[-1]
        hub = keys.read(f'huggingface_{kind}_hub_{size}')
        named = dict(zip(hub, tensors.values(), strict=True))  # the lists are in one order
        return {n: x for n, x in named.items() if not n.startswith('pooler')}
    if name in INNER:
        start = INNER[name]
        own = {n.removeprefix(start): x for n, x in tensors.items() if n.startswith(start)}
        return {n: x for n, x in own.items() if not n.startswith('head.')}
    if name.startswith('big_vision'):
        return {n.removeprefix('params/'): x for n, x in tensors.items()}
    if 'head.0.num_batches_tracked' in tensors:
        return tensors | {'head.0.num_batches_tracked': np.array(0)}  # not kept: it has no use
    return tensors


def as_bits(tensor):
    return np.ascontiguousarray(tensor).view(np.uint8)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow if name.endswith('huge') else ())
        for name in keys.names()
    ],
)
def test_every_tensor_comes_back_to_the_bit(name):
    tensors = keys.tensors(keys.read(name))
    foreign = recognise(tensors, {'heads': 12} if name.endswith('base') else {})
    trained = to_ours(foreign, {})
    naming = 'official' if foreign.naming == 'official_probe' else foreign.naming
    back, wanted = to_theirs(trained, naming), expected(name, tensors)
    assert back.keys() == wanted.keys()
    for tensor in wanted:
        assert back[tensor].dtype == wanted[tensor].dtype, tensor
        assert back[tensor].shape == wanted[tensor].shape, tensor
        assert np.array_equal(as_bits(back[tensor]), as_bits(wanted[tensor])), tensor
    if name in PARAMETERS:
        assert sum(x.size for x in back.values()) == PARAMETERS[name]
