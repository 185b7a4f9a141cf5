"""What was compiled once is kept, so that a run's next start does not compile it again."""

import os

import jax

MAX_BYTES = 4 << 30
"""Of the whole; what has not been used for the longest time goes first."""


def keep_compiled() -> None:
    """Turns JAX's persistent compilation cache on, in ~/.cache/mae_jax.

    To be called when processes have found each other, and before anything is compiled. JAX's own
    settings come first: JAX_COMPILATION_CACHE_DIR puts it elsewhere, JAX_ENABLE_COMPILATION_CACHE=
    false turns it off. JAX finds a program there by its code, the device, the flags and its own
    version. An entry that a killed process left half-written is warned of at each start; delete the
    directory then.

    Several processes have none but what JAX is told: where homes are not shared, one would find
    what the others have to compile, and on GPUs these would wait for it to tune with them.
    """
    caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    is_given = jax.config.jax_compilation_cache_dir is not None
    if is_given or jax.distributed.is_initialized() or not os.path.isabs(caches):
        return
    jax.config.update('jax_compilation_cache_dir', os.path.join(caches, 'mae_jax'))
    # XLA's own caches within it have no bound, and end a run that may not write there.
    jax.config.update('jax_persistent_cache_enable_xla_caches', '')
    if jax.config.jax_compilation_cache_max_size == -1:
        jax.config.update('jax_compilation_cache_max_size', MAX_BYTES)
