"""Semantic segmentation: heads on the maps of patches that an encoder computes.

`segmenter.py` puts a head and, for training, an auxiliary one on an encoder: start there.
`linear.py` is a probe, `upernet.py` the head of the paper's Table 5; `layers.py` has what they are
built from, and `windows.py` predicts images that are larger than those of training.

Maps are [B, h, w, D], one for each block that is tapped, of the patches alone.
"""
