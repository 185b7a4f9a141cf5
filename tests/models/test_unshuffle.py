"""Patches are put back into their places, and their gradients are gathered, by NumPy's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mae_jax.models.unshuffle import unshuffle
from mae_jax.pretext.masking import masking_from_noise

B, N, K, D = 3, 6, 2, 4


@pytest.fixture(scope='module')
def case():
    """(tokens, masking)."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(B, K, D)).astype(np.float32)
    return tokens, masking_from_noise(rng.random((B, N), np.float32), K)


def test_a_visible_patch_is_in_its_place_and_a_hidden_one_is_zero(case):
    tokens, masking = case
    expected = np.zeros((B, N, D), np.float32)
    for row in range(B):
        expected[row, masking.ids_keep[row]] = tokens[row]
    actual = unshuffle(tokens, masking.ids_keep, masking.ids_restore)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal((actual == 0).all(axis=-1), masking.mask)


def test_the_gradient_is_that_of_jax_for_the_same_gather_without_its_scatter(case):
    tokens, masking = case
    weights = np.random.default_rng(1).normal(size=(B, N, D)).astype(np.float32)

    def ours(tokens):
        return (unshuffle(tokens, masking.ids_keep, masking.ids_restore) * weights).sum()

    def plain(tokens):
        all_tokens = jnp.concatenate([tokens, jnp.zeros((B, N - K, D))], axis=1)
        placed = jnp.take_along_axis(all_tokens, masking.ids_restore[..., None], axis=1)
        return (placed * weights).sum()

    np.testing.assert_array_equal(jax.grad(ours)(tokens), jax.grad(plain)(tokens))
    scatters = ['scatter' in str(jax.make_jaxpr(jax.grad(f))(tokens)) for f in (ours, plain)]
    assert scatters == [False, True]


def test_both_modes_agree_to_second_order_and_under_vmap(case):
    tokens, masking = case

    def f(tokens):
        return jnp.sin(unshuffle(tokens, masking.ids_keep, masking.ids_restore)).sum()

    check_grads(jax.jit(f), (tokens,), order=2, modes=('fwd', 'rev'), atol=1e-2, rtol=1e-2)
    ids = masking.ids_keep[:, None], masking.ids_restore[:, None]
    mapped = jax.vmap(unshuffle)(tokens[:, None], *ids)[:, 0]
    np.testing.assert_array_equal(mapped, unshuffle(tokens, *masking[:2]))
