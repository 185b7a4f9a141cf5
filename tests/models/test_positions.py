import numpy as np
import pytest
import vitmae

from mae_jax.errors import UserError
from mae_jax.models.positions import sincos_2d


@pytest.mark.parametrize('dim, grid', [(16, (4, 4)), (12, (2, 7)), (8, (5, 3))])
def test_table_follows_the_formula(dim, grid):
    table = sincos_2d(dim, grid)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, vitmae.positions(dim, grid), atol=1e-7)


def test_a_step_to_the_right_changes_the_first_half_alone():
    table = sincos_2d(16, (3, 5))[0, 1:].reshape(3, 5, 16)
    assert (table[0, 0, :8] != table[0, 1, :8]).any()
    np.testing.assert_array_equal(table[0, 0, 8:], table[0, 1, 8:])
    np.testing.assert_array_equal(table[0, 0, :8], table[1, 0, :8])


def test_the_cls_token_has_no_position():
    np.testing.assert_array_equal(sincos_2d(8, (2, 2))[:, 0], np.zeros((1, 8)))
    assert sincos_2d(8, (2, 2), cls_token=False).shape == (1, 4, 8)


def test_a_width_that_4_does_not_divide_is_refused():
    with pytest.raises(UserError, match='4 divides'):
        sincos_2d(10, (2, 2))
