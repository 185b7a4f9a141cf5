"""Batches of a source: a batch is a pure function of (seed, step), whatever the process count.

`batches.py` is the entry: `make_loader` for training and `eval_batches` for evaluation. `order.py`
defines the order of examples and each process's share of a batch. `read_ahead.py` connects what
loads ahead of use: `readers.py` has threads and worker processes (`worker.py`), which load one
example at a time (`examples.py`) into the memory of a piece of a batch (`layout.py`); `assembly.py`
sends each piece to its device and makes batches of them; `stream.py` notices when a worker or a
read dies or hangs. `memory.py` makes batches of arrays in memory. `pairs.py` evaluates images with
masks, whole, on the canvases that `canvases.py` chooses; `instances.py` has images with boxes.
Imports `images` and `transforms`.
"""
