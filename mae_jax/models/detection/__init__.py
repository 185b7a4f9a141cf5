"""Detection and instance segmentation: Mask R-CNN on the last map of an encoder, as in ViTDet.

"Exploring Plain Vision Transformer Backbones for Object Detection" (arXiv 2203.16527) and "Mask
R-CNN" (arXiv 1703.06870); numbers and normalisers are those of detectron2. `detector.py` puts all
together: start there. `pyramid.py` makes maps of several sizes, `proposals.py` proposes boxes,
`regions.py` draws those that the heads learn from, `heads.py` classifies and refines them and
predicts masks, `losses.py` has the losses of all. `boxes.py`, `anchors.py`, `matching.py`,
`sampling.py`, `nms.py` and `roi_align.py` are pure functions; `rows.py` keeps what XLA would gather
on the devices that have it.

Boxes are float32 (x0, y0, x1, y1) in pixels of the padded image, in continuous coordinates: x1 and
y1 are edges that do not belong to the box. Shapes are static: what an image has fewer of is padded,
with a validity beside it. Nothing scatters, forward or backward.

In the shapes of signatures: B images, h x w cells of a map, D channels, N boxes of the truth, A
anchors, R proposals, K classes.
"""
