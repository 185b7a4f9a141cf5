"""Reading and writing files, safely: paths, limits, locks, and tensors by name.

`limits.py` bounds what a file of somebody else may make a program read or allocate, `tensors.py`
reads and writes safetensors, .npz and .pth files, `lock.py` holds a directory for one process,
`paths.py` resolves local and cloud paths. `buckets.py` is the only module that knows how `gs://`
differs from a disk; `mirror.py` keeps a copy there of what is written line by line, and `lease.py`
stands for the lock. Imports `errors` only. Start with `tensors.py`.
"""
