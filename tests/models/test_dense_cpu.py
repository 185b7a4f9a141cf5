"""What XLA makes of a dense layer's gradient on a CPU."""

import jax
import jax.numpy as jnp
import pytest

from mae_jax.models.dense import Dense
from mae_jax.runtime.chips import choose_dtype


@pytest.mark.skipif(
    jax.default_backend() != 'cpu' or choose_dtype('cpu') != 'bfloat16',
    reason='needs a CPU that multiplies bfloat16',
)
@pytest.mark.parametrize('width', [64, 48])
def test_no_product_of_bfloat16_is_widened(width):
    layer, x = Dense(96, dtype=jnp.bfloat16), jnp.ones((2, 80, width), jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)

    def gradient(params, x):
        return jax.grad(lambda p: layer.apply(p, x).astype(jnp.float32).sum())(params)

    program = jax.jit(gradient).lower(params, x).compile().as_text()
    products = [line for line in program.splitlines() if ' dot(' in line]
    assert products
    assert f'f32[160,{width}]' not in program and f'f32[{width},160]' not in program
