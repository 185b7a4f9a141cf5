"""Tensors of other libraries are the same to the bit after conversion to ours and back.

Names and shapes are those of the libraries' own models (`tests/golden/keys`); the values
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
"""Numbers of parameters, with both position tables."""

INNER = {  # a checkpoint of several networks -> prefix of the encoder's tensors
    'moco_v3_small': 'module.base_encoder.',
    'dino_small_backbone': '',
    'dino_small_teacher': 'backbone.',
    'dino_small_student': 'module.backbone.',
}


BEITS_OWN = ('mask_token', 'lm_head.')
"""Beside the index of tables, what BEiT's encoder does not need."""


def expected(name, tensors):
    """Returns the expected tensors: with the names of Hugging Face's hub, of the encoder only."""
    if 'beit' in name:
        return expected_beit(name, tensors)
    if name.startswith('huggingface'):
        kind, size = name.split('_')[1], name.split('_')[-1]
        hub = keys.read(f'huggingface_{kind}_hub_{size}')
        named = dict(zip(hub, tensors.values(), strict=True))  # both lists have the same order
        return {n: x for n, x in named.items() if not n.startswith('pooler')}
    if name in INNER:
        start = INNER[name]
        own = {n.removeprefix(start): x for n, x in tensors.items() if n.startswith(start)}
        return {n: x for n, x in own.items() if not n.startswith('head.')}
    if name.startswith('big_vision'):
        return {n.removeprefix('params/'): x for n, x in tensors.items()}
    if 'head.0.num_batches_tracked' in tensors:
        return tensors | {'head.0.num_batches_tracked': np.array(0)}  # not kept: it is not used
    return tensors


def expected_beit(name, tensors):
    """Without the head and the mask token of pretraining, and without what follows from a size."""
    if name.startswith('huggingface'):
        hub = keys.read(f'{name.rsplit("_", 2)[0]}_hub_base')
        tensors = dict(zip(hub, tensors.values(), strict=True))
        if 'classifier' not in name:
            tensors = {n.removeprefix('beit.'): x for n, x in tensors.items()}
    unused = [n for n in tensors if n.endswith('relative_position_index')]
    unused += [n for n in tensors if n.removeprefix('embeddings.').startswith(BEITS_OWN)]
    return {n: x for n, x in tensors.items() if n not in unused}


def is_large(name):
    """Returns whether the test of a model is slow; one model of 24 blocks is not."""
    return name.endswith('huge') or name.endswith('large') and name != 'official_full_large'


def as_bits(tensor):
    return np.ascontiguousarray(tensor).view(np.uint8)


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * is_large(n)) for n in keys.names()]
)
def test_every_tensor_comes_back_to_the_bit(name):
    tensors = keys.tensors(keys.read(name))
    foreign = recognise(tensors, {'heads': 12} if name.endswith('base') else {})
    trained = to_ours(foreign, {})
    naming = foreign.naming
    if naming.startswith(('official', 'beit')):
        naming = 'official'
    if naming.startswith('huggingface'):
        naming = 'huggingface'
    actual, correct = to_theirs(trained, naming), expected(name, tensors)
    assert actual.keys() == correct.keys()
    for tensor in correct:
        assert actual[tensor].dtype == correct[tensor].dtype, tensor
        assert actual[tensor].shape == correct[tensor].shape, tensor
        assert np.array_equal(as_bits(actual[tensor]), as_bits(correct[tensor])), tensor
    if name in PARAMETERS:
        assert sum(x.size for x in actual.values()) == PARAMETERS[name]
