"""Sets the flags of XLA that a run needs; no other module sets any.

They are few, since most flags that guides recommend are on by default today. These keep their
defaults:

- on GPUs the sizes up to which collectives are combined, 30 MiB each: about a block of ViT-L in
  bfloat16, which is a good choice.
- on TPUs, where flags go to LIBTPU_INIT_ARGS, all of them. An fsdp step that libtpu 0.0.42 compiles
  for v5e is the same, byte for byte, with the fusion of collectives that MaxText lists
  (xla_tpu_enable_async_collective_fusion and related flags) and, over two slices, with
  xla_tpu_enable_data_parallel_all_reduce_opt; for v4 and v6e it has the same collectives.
"""

import glob
import os
from collections.abc import Iterable
from importlib.util import find_spec

_GPU = (
    # Overlaps the sums of gradients, and the gathers of parameters under fsdp, with computation.
    # Off by default in XLA, on in NVIDIA's JAX images.
    '--xla_gpu_enable_latency_hiding_scheduler=true',
)
_GPU_DETERMINISTIC = (
    # Uses only kernels that add in a fixed order, and selects none by timing: a resumed run
    # compiles again and might select another. xla_gpu_exclude_nondeterministic_ops does only the
    # former.
    '--xla_gpu_deterministic_ops=true',
)


def set_xla_flags(deterministic: bool = False) -> None:
    """Adds the flags to the environment, where XLA reads them when JAX starts a device.

    Call it before that. A flag that the user has set keeps the user's value. Without a GPU nothing
    is set, since other backends may not know these flags.

    Args:
      deterministic: makes a program give the same bits each time on the same GPU, at some cost in
        speed.
    """
    if _may_use_gpu():
        _set('XLA_FLAGS', _GPU + (_GPU_DETERMINISTIC if deterministic else ()))


def gpu_options() -> dict[str, bool]:
    """Returns the flags of a run on a GPU as compiler options, to compile without one."""
    return {_name(flag): flag.endswith('=true') for flag in _GPU}


def uses_cpu() -> bool:
    """Returns whether JAX will use the CPU, without importing JAX."""
    if platforms := os.environ.get('JAX_PLATFORMS'):
        return platforms == 'cpu'
    return not _may_use_gpu() and not _has_tpu()


def leave_out_absent_tpu() -> None:
    """Keeps JAX from starting TPUs where libtpu is installed only to compile for them.

    It would print a dozen lines about the failure. Call it before JAX is imported.
    """
    if not os.environ.get('JAX_PLATFORMS') and uses_cpu() and find_spec('libtpu'):
        os.environ['JAX_PLATFORMS'] = 'cpu'


def _has_tpu() -> bool:
    """Returns whether there are TPU chips; libtpu alone may be installed to compile for them."""
    chips = any(glob.glob(f'/dev/{name}[0-9]*') for name in ('accel', 'vfio/'))
    return chips and find_spec('libtpu') is not None


def _may_use_gpu() -> bool:
    """Returns whether JAX may use a GPU: by JAX_PLATFORMS, else by the installed plugins."""
    kinds = ('gpu', 'cuda', 'rocm')
    if platforms := os.environ.get('JAX_PLATFORMS'):
        return any(kind in platforms for kind in kinds)
    plugins = find_spec('jax_plugins')  # a namespace, with xla_cuda13 or the like in it
    folders = plugins.submodule_search_locations or () if plugins else ()
    names = [name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)]
    return any(kind in name for name in names for kind in kinds)


def _set(variable: str, flags: Iterable[str]) -> None:
    """Adds those `flags` to an environment variable whose names it does not hold yet."""
    given = os.environ.get(variable, '').split()
    named = {_name(flag) for flag in given}
    os.environ[variable] = ' '.join([flag for flag in flags if _name(flag) not in named] + given)


def _name(flag: str) -> str:
    return flag.lstrip('-').partition('=')[0]
