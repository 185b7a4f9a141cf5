"""Batches of a source: a batch is a pure function of (seed, step), whatever the process count.

`batches.py` is the entry: `make_loader` for training and `eval_batches` for evaluation. `order.py`
defines the order of examples and each process's share of a batch; `read_ahead.py` loads batches in
threads and worker processes; `stream.py` notices when one of those dies or hangs; `memory.py`
makes batches of arrays in memory. Imports `images` and `transforms`.
"""
