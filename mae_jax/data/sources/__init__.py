"""Data sets with random access, each a `Source` (`protocol.py`).

`make.py` creates the source that `dataset.name` names: `coco.py` (images with boxes;
`coco_layout.py` finds the files, `coco_json.py` reads them, `outlines.py` keeps polygons and
masks, `coco_truth.py` is for pycocotools), `digits.py`, `files.py` (CSV), `folder.py`
(`listing.py` finds its images), `paired_folders.py` (images with masks; `classes.py` has names and
colours of classes), `prepared.py` (whose files `prepared_format.py` defines), `synthetic.py`, a
function of one's own, or `tfds.py`. `arrays.py`, `files.py` and `huggingface.py` have those that a
user makes in Python. Imports `images` for limits, outlines and errors alone. Start reading with
`protocol.py`, then `make.py`.
"""
