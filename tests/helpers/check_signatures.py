"""Importing this checks the calls of these packages against their signatures, shapes included.

Calls are checked in tests only: importing mae_jax installs no hook.
"""

from jaxtyping import install_import_hook

install_import_hook(['mae_jax.models', 'mae_jax.pretext', 'mae_jax.tasks'], 'beartype.beartype')
