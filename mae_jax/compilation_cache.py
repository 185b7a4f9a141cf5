"""What was compiled once is kept, so that a run's next start does not compile it again."""

import os
from pathlib import Path

import jax

MAX_BYTES = 4 << 30
"""Of the whole; what has not been used for the longest time goes first."""


def keep_compiled() -> None:
    """Turns JAX's persistent compilation cache on, in ~/.cache/mae_jax.

    To be called before anything is compiled. JAX's own settings come first:
    JAX_COMPILATION_CACHE_DIR puts it elsewhere, JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    JAX finds a program there by its code, the device, the flags and its own version.
    """
    if jax.config.jax_compilation_cache_dir is None:
        caches = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
        jax.config.update('jax_compilation_cache_dir', str(Path(caches, 'mae_jax')))
        jax.config.update('jax_compilation_cache_max_size', MAX_BYTES)
