"""Chips are looked up by their common names and by JAX's device kinds."""

import pytest

from mae_jax.errors import UserError
from mae_jax.runtime.chips import CHIPS, named_chip, peak_flops, usable_share


def test_every_chip_has_names_of_its_own():
    for chip in CHIPS:
        assert named_chip(chip.name.upper()) == chip
        assert [peak_flops(kind) for kind in chip.device_kinds] == [chip.flops] * len(
            chip.device_kinds
        )


@pytest.mark.parametrize(
    ('name', 'flops', 'memory'),
    [('v4', 275e12, 32), ('v5e', 197e12, 16), ('a100', 312e12, 80), ('h200', 989e12, 141)],
)
def test_figures_are_those_of_the_data_sheets(name, flops, memory):
    assert named_chip(name)[2:4] == (flops, memory)


def test_a_gpu_offers_what_jaxs_allocator_takes():
    h100, v5e = named_chip('h100'), named_chip('v5e')
    assert (usable_share(h100, {}), usable_share(v5e, {})) == (0.75, 0.9)
    for name in ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'):
        assert (usable_share(h100, {name: '.92'}), usable_share(v5e, {name: '.92'})) == (0.92, 0.9)
        with pytest.raises(UserError, match=f'{name}=all must be a share'):
            usable_share(h100, {name: 'all'})


def test_an_unknown_chip_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="'v99'.*v5p.*h100"):
        named_chip('v99')
