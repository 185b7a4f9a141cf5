"""The tokenizer of mean colours."""

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.pretext.color_tokens import color_tokens
from mae_jax.pretext.tokenizers import make_tokenizer


def test_a_token_is_the_mean_colour_of_its_patch():
    images = np.zeros((1, 16, 24, 3), np.float32)
    images[0, 8:, 16:] = 1.0  # the last patch is white; half the pixels of the one before are red
    images[0, 8:, 8:16, 0] = np.indices((8, 8)).sum(axis=0) % 2
    np.testing.assert_array_equal(
        color_tokens(jnp.asarray(images)), [[[0, 0, 0], [0, 4 * 64, 511]]]
    )
    spec = 'mae_jax.pretext.color_tokens:color_tokens'
    tokenizer = make_tokenizer(spec, codes=512, grid=(2, 3), channels=3)
    ids = jax.jit(tokenizer.apply)({}, images)
    np.testing.assert_array_equal(ids, [[0, 0, 0, 0, 256, 511]])
