"""Describes GPUs to XLA, to compile for one that this machine lacks."""

GPU_TARGETS = {
    'h100': {  # SXM: what the CUDA runtime reports of it
        'threads_per_block_limit': 1024,
        'threads_per_warp': 32,
        'threads_per_core_limit': 2048,
        'shared_memory_per_block': 49_152,
        'shared_memory_per_block_optin': 232_448,
        'shared_memory_per_core': 233_472,
        'registers_per_block_limit': 65_536,
        'registers_per_core_limit': 65_536,
        'core_count': 132,
        'fpus_per_core': 128,
        'block_dim_limit_x': 2**31 - 1,
        'block_dim_limit_y': 65_535,
        'block_dim_limit_z': 65_535,
        'clock_rate_ghz': 1.98,
        'memory_bandwidth': 3_352_000_000_000,
        'l2_cache_size': 52_428_800,
        'device_memory_size': 84_942_979_072,
        'cuda_compute_capability': '{ major: 9 }',
    }
}
"""Name of a chip -> fields of XLA's message `GpuDeviceInfoProto`."""
CUDNN = '{ major: 9 minor: 12 }'


def target_config(name: str, device_kind: str) -> str:
    """Returns XLA's `GpuTargetConfigProto` of a GPU as text.

    Args:
      name: in `GPU_TARGETS`.
      device_kind: JAX's name of it.
    """
    fields = GPU_TARGETS[name].items()
    info = '\n'.join(f'  {field}: {value}' for field, value in fields)
    return (
        f'gpu_device_info {{\n{info}\n}}\nplatform_name: "CUDA"\n'
        f'dnn_version_info {CUDNN}\ndevice_description_str: "{device_kind}"\n'
    )
