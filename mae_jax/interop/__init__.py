"""Trained weights in and out: loading, exporting, and converting between libraries.

`load.py` has the public `load`, `load_encoder` and `load_normalize`; `read.py` reads a model of any
kind, `trained.py` reads and writes one in our own format. Conversion runs through `foreign.py`
(reads a file of another library), `detect.py` (derives its config), `name_maps.py` and
`beit_names.py` (names of tensors), `rules.py` (their layouts), `translate.py` (applies them),
`check.py` (compares outputs) and `convert.py` (all of it; read it first).
It imports `tasks`, `config`, `models`, `checkpoints` and `files`; `experiment` uses it.
"""
