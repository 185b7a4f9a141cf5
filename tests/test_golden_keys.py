"""The lists of names and shapes that converters are held to."""

import math

import keys
import numpy as np
import pytest


@pytest.mark.parametrize(
    'size, parameters', [('base', 111_907_840), ('large', 329_541_888), ('huge', 657_074_508)]
)
@pytest.mark.parametrize('kind', ['official_full', 'huggingface_mae_hub'])
def test_lists_of_autoencoders_count_the_published_parameters(kind, size, parameters):
    shapes = keys.read(f'{kind}_{size}').values()
    assert sum(map(math.prod, shapes)) == parameters


@pytest.mark.parametrize('name', keys.names())
def test_tensors_have_the_shapes_of_the_list_and_are_finite_and_all_different(name):
    shapes = keys.read(name)
    tensors = keys.tensors(shapes)
    assert {key: tensor.shape for key, tensor in tensors.items()} == shapes
    first = {tensor.ravel()[:4].tobytes() for tensor in tensors.values()}
    assert len(first) == len(tensors)
    assert all(np.isfinite(tensor.ravel()[:4096]).all() for tensor in tensors.values())
