"""Trained models applied to images: `visualize.py` draws, `embed.py` computes features.

`images.py` loads files as a model takes them.

May import everything that loads a model and reads images (`interop`, `data`, `visualization`, ...),
but nothing that runs an experiment.
"""
