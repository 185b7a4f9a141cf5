"""Self-attention over short sequences, computed as each platform does it fastest.

`layer.py` has the projections around it, and relative positions. `dispatch.py` chooses: `plain.py`
is the reference, `cpu.py` and `gpu.py` are for these platforms, and `tpu.py` is a differentiable
operation that runs on each device's rows, of the Pallas kernels in `tpu_kernels.py`. Start reading
at `dispatch.attend`.
"""
