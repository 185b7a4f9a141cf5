"""Measuring a model or an encoder on data.

`exact.py` sums a task's metrics over every example of a split. `encode.py` computes the features of
a split with `frozen_encoder.py`, and `probe.py` fits k-NN and linear classifiers to them.
`robustness_sets.py` opens ImageNet-A, -R, -Sketch, -C and corrupted images, `robustness.py` has mCE
and matches classes, `robustness_report.py` tabulates and draws.

May import `tasks`, `config`, `training`, `models` and what these import. When to measure is up to
`experiment`.
"""
