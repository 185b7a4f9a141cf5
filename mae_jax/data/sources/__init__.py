"""Data sets with random access, each a `Source` (`protocol.py`).

`make.py` creates the source that `dataset.name` names: `digits.py`, `folder.py`, `prepared.py`
(whose files `prepared_format.py` defines), `synthetic.py`, a function of one's own, or `tfds.py`.
`listing.py` finds the images of a folder; `arrays.py` is a source of arrays in memory. Imports
`images` for limits and errors alone.
Start reading with `protocol.py`, then `make.py`.
"""
