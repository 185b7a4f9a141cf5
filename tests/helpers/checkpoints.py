"""States to save, and damage to the checkpoints that hold them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def make_state(seed: int = 0, rows: int = 16) -> dict[str, Any]:
    """Makes parameters and optimiser state like those of a run: nested, of several dtypes."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        'encoder': {'kernel': jax.random.normal(keys[0], (rows, 4))},
        'decoder': {'bias': jax.random.normal(keys[1], (3,)).astype(jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    return {'params': params, 'opt_state': opt_state, 'step': jnp.int32(seed), 'model_state': {}}


def assert_same(actual: Any, expected: Any) -> None:
    """Asserts that two trees have the same structure, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def flip_bit(path: Path) -> None:
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << 3
    path.write_bytes(content)


def files_of(directory: Path) -> list[Path]:
    """Lists all files below a directory."""
    return sorted(path for path in directory.rglob('*') if path.is_file())
