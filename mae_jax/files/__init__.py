"""Reading and writing files, safely: paths, limits, locks, and tensors by name.

`limits.py` bounds what a file of somebody else may make a program read or allocate, `tensors.py`
reads and writes safetensors, .npz and .pth files, `lock.py` holds a directory for one process,
`paths.py` resolves local and cloud paths. Imports `errors` only. Start with `tensors.py`.
"""
