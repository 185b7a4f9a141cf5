"""A decoded image -> the view of it that training or evaluation uses.

`views.py` is the entry: training views, training canvases (for crops on the device), evaluation
crops; `pairs.py` is the entry for images with masks, `boxes.py` that for images with boxes.
`crops.py` chooses and resizes crops; `randaugment.py`, `color_jitter.py` and `photometric.py` are
the augmentations. `corruptions.py` has those of ImageNet-C, as a source that wraps another. Imports
`images`. Random numbers depend on (seed, epoch, index) alone.
"""
