"""Keeps compiled programs on disk, so that the next start of a run does not compile them again."""

import os

import jax

MAX_BYTES = 4 << 30
"""Maximum size of the cache in bytes; the least recently used entries are evicted first."""


def keep_compiled() -> None:
    """Turns JAX's persistent compilation cache on, in ~/.cache/mae_jax.

    Call it after the processes of the run have connected and before anything is compiled. JAX's own
    settings have priority: JAX_COMPILATION_CACHE_DIR names another directory,
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. JAX looks a program up by its code, the
    device, the flags and its own version. An entry that a killed process left half-written causes a
    warning at each start; delete the directory then.

    A run of several processes uses only a cache that JAX's own settings name: with home directories
    that are not shared, one process could load what the others must compile, and on GPUs these
    would wait for it to take part in autotuning.
    """
    caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    is_given = jax.config.jax_compilation_cache_dir is not None
    if is_given or jax.distributed.is_initialized() or not os.path.isabs(caches):
        return
    jax.config.update('jax_compilation_cache_dir', os.path.join(caches, 'mae_jax'))
    # XLA's own caches inside it have no size limit, and a run that may not write to them fails.
    jax.config.update('jax_persistent_cache_enable_xla_caches', '')
    if jax.config.jax_compilation_cache_max_size == -1:
        jax.config.update('jax_compilation_cache_max_size', MAX_BYTES)
