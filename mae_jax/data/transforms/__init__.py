"""A decoded image -> the view of it that training or evaluation uses.

`views.py` is the entry: training views, training canvases (for crops on the device), evaluation
crops. `crops.py` chooses and resizes crops; `randaugment.py` and `color_jitter.py` are the
augmentations. Imports `images`. Random numbers depend on (seed, epoch, index) alone.
"""
