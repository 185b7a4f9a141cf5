"""`mae-jax prepare`: writes a data set as ArrayRecord shards of images no larger than needed.

`prepare.py` plans and resumes the work, `shards.py` writes shards in worker processes, `reduce.py`
resizes one image. What is written is read by `sources/prepared.py`. Imports `sources`, `images`,
`transforms` and the processor count of `loader`. Start reading with `prepare.py`.
"""
