"""Keeps compiled programs on disk, so that the next start of a run does not compile them again."""

import os

import jax

from mae_jax.files.paths import absolute
from mae_jax.runtime.processes import say

MAX_BYTES = 4 << 30
"""Maximum size of the cache in bytes; the least recently used entries are evicted first."""
SHARED = 'compiled'
"""Directory of the cache within the work directory of a run of several processes."""


def keep_compiled(workdir: str | os.PathLike | None) -> None:
    """Turns JAX's persistent compilation cache on: in ~/.cache/mae_jax, or in the work directory.

    Call it after the processes of the run have connected and before anything is compiled. JAX's own
    settings have priority: JAX_COMPILATION_CACHE_DIR names another directory,
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. JAX looks a program up by its code, the
    device, the flags and its own version. An entry that a killed process left half-written causes a
    warning at each start; delete the directory then.

    Several processes use one directory, which all of them see, as they do the work directory: only
    process 0 writes entries, and one that had to compile what the others load would wait, on GPUs,
    for them to take part in autotuning. Entries are then neither evicted nor locked. On CPUs, whose
    description differs from process to process, only process 0 finds its programs.

    Args:
      workdir: of the run; None where what it holds is not to be trusted.
    """
    if not jax.config.jax_enable_compilation_cache:
        return
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    if jax.config.jax_compilation_cache_dir is None:
        caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
        if several and workdir is None:
            return
        elif several:
            jax.config.update('jax_compilation_cache_dir', os.fspath(absolute(workdir) / SHARED))
        elif os.path.isabs(caches):
            jax.config.update('jax_compilation_cache_dir', os.path.join(caches, 'mae_jax'))
            if jax.config.jax_compilation_cache_max_size == -1:
                jax.config.update('jax_compilation_cache_max_size', MAX_BYTES)
        # XLA's own caches inside it have no size limit, and a run that may not write to them fails.
        jax.config.update('jax_persistent_cache_enable_xla_caches', '')
    if several:
        say(f'compiled programs are kept in {jax.config.jax_compilation_cache_dir}')
