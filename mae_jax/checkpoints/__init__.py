"""Checkpoints of a run: written in the background, checked for damage before use.

`manager.py` saves and restores the state of a run (read it first), by `write.py` and `restore.py`;
`best.py` keeps the one with the highest score. `weights.py` reads the weights of a run without
knowing its model, `find.py` looks for the newest intact checkpoint, `integrity.py` writes and
verifies checksums. Only this package uses Orbax. It imports `runtime` and `files`.
"""
