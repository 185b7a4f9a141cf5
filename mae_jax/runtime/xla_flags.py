"""The flags of XLA that a run sets, each with its reason: the one place for them.

They are few: most of what is recommended in places has become the default. At their defaults stay

- on GPUs the sizes up to which collectives are combined, 30 MiB each: about a block of ViT-L in
  bfloat16, which is what one would choose.
- on TPUs, where flags go to LIBTPU_INIT_ARGS, everything. An fsdp step that libtpu 0.0.42 compiles
  for v5e comes out the same, byte for byte, with the fusion of collectives that MaxText lists
  (xla_tpu_enable_async_collective_fusion and its kin) and, over two slices, with
  xla_tpu_enable_data_parallel_all_reduce_opt; for v4 and v6e it has the same collectives.
"""

import os
from collections.abc import Iterable
from importlib.util import find_spec

_GPU = (
    # Gradients are summed, and parameters gathered under fsdp, while the GPU computes something
    # else. Off by default in XLA; NVIDIA's JAX images have it on.
    '--xla_gpu_enable_latency_hiding_scheduler=true',
)
_GPU_DETERMINISTIC = (
    # Only kernels that add in a fixed order, and none picked for being fastest when timed: a
    # resumed run compiles again and might pick another. xla_gpu_exclude_nondeterministic_ops
    # would see to the first alone.
    '--xla_gpu_deterministic_ops=true',
)


def set_xla_flags(deterministic: bool = False) -> None:
    """Puts the flags into the environment, where XLA reads them when JAX starts a device.

    To be called before that. A flag that the user has given there keeps the user's value. Where
    JAX will not use a GPU nothing is set: other backends may not know the flags of this one.

    Args:
      deterministic: the same program on the same GPU gives the same bits, somewhat slower.
    """
    if _may_use_gpu():
        _set('XLA_FLAGS', _GPU + (_GPU_DETERMINISTIC if deterministic else ()))


def uses_cpu() -> bool:
    """Whether JAX will find nothing else, as far as can be told without it."""
    if platforms := os.environ.get('JAX_PLATFORMS'):
        return platforms == 'cpu'
    return not _may_use_gpu() and find_spec('libtpu') is None


def _may_use_gpu() -> bool:
    """As far as can be told without JAX: JAX_PLATFORMS, else whether a plugin is installed."""
    kinds = ('gpu', 'cuda', 'rocm')
    if platforms := os.environ.get('JAX_PLATFORMS'):
        return any(kind in platforms for kind in kinds)
    plugins = find_spec('jax_plugins')  # a namespace, with xla_cuda13 or the like in it
    places = plugins.submodule_search_locations or () if plugins else ()
    names = [name for place in places if os.path.isdir(place) for name in os.listdir(place)]
    return any(kind in name for name in names for kind in kinds)


def _set(variable: str, flags: Iterable[str]) -> None:
    """Adds those of `flags` that the variable does not name yet."""
    given = os.environ.get(variable, '').split()
    named = {_name(flag) for flag in given}
    os.environ[variable] = ' '.join([flag for flag in flags if _name(flag) not in named] + given)


def _name(flag: str) -> str:
    return flag.lstrip('-').partition('=')[0]
