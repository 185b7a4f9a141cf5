"""Trained models applied to files of the user's: `visualize.py`, for `mae-jax visualize`.

May import everything that loads a model and reads images (`interop`, `data`, `visualization`, ...),
but nothing that runs an experiment.
"""
