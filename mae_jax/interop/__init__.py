"""Trained weights in and out: loading, exporting, and converting between libraries.

`load.py` has the public `load`, `load_encoder` and `load_normalize`; `trained.py` reads and writes
a model in our own format. Conversion runs through `foreign.py` (reads a file of another library),
`detect.py` (derives its config), `name_maps.py` (names and layouts of tensors), `translate.py`
(applies them), `check.py` (compares outputs) and `convert.py` (all of it; read it first).
It imports `tasks`, `config`, `models`, `checkpoints` and `files`; `experiment` uses it.
"""
