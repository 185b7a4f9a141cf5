"""Measuring a model or an encoder on data.

`exact.py` sums a task's metrics over every example of a split. `encode.py` computes the features of
a split with `frozen_encoder.py`, and `probe.py` fits k-NN and linear classifiers to them.

May import `tasks`, `config`, `training`, `models` and what these import. When to measure is up to
`experiment`.
"""
