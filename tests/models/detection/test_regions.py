"""Proposals and what the heads learn from them, against NumPy."""

import jax
import jax.numpy as jnp
import mask_rcnn
import numpy as np

from mae_jax.models.detection.boxes import decode, encode, iou
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.detection.proposals import (
    Proposals,
    count_proposals,
    proposal_losses,
    propose,
)
from mae_jax.models.detection.regions import draw_regions, foreground_regions, mask_targets

SIZE = np.array([[60, 80], [80, 50]])
OPTIONS = DetectorOptions(
    before_nms=12, before_nms_train=30, after_nms=20, anchor_samples=16, roi_samples=12
)


def draw_boxes(rng, *shape: int) -> np.ndarray:
    corners = rng.uniform(-10, 70, (*shape, 2))
    return np.concatenate([corners, corners + rng.uniform(2, 40, (*shape, 2))], -1).astype('f')


def levels(rng) -> tuple[list, list, list]:
    """Logits, deltas and anchors of three maps, with a box that is not finite, and one of none."""
    counts = (40, 25, 9)
    logits = [rng.normal(size=(2, n)).astype('f') for n in counts]
    deltas = [rng.normal(0, 0.3, (2, n, 4)).astype('f') for n in counts]
    anchors = [draw_boxes(rng, n) for n in counts]
    logits[0][0, 7], deltas[0][0, 7] = 9, np.nan
    logits[1][1, 3], deltas[1][1, 3] = 9, (1000, 0, 0, 0)  # far beyond the image
    return logits, deltas, anchors


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU with each, by the definition: shapes differ from call to call, and JAX would compile."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return shared / ((box[2:] - box[:2]).prod() + areas - shared)


def proposed_by_hand(image, logits, deltas, anchors, before, after):
    """Boxes and logits, in NumPy but for decoding."""
    height, width = SIZE[image]
    rows = []
    for of_level in zip(logits, deltas, anchors, strict=True):
        scores, boxes = of_level[0][image], np.asarray(decode(of_level[1][image], of_level[2]))
        kept = []
        for i in np.argsort(-scores, kind='stable')[:before]:
            box = np.clip(boxes[i], 0, [width, height, width, height])
            filled = np.isfinite(boxes[i]).all() and box[2] > box[0] and box[3] > box[1]
            others = np.array([b for b, _ in kept]).reshape(-1, 4)
            if filled and not (overlap(box, others) > 0.7).any():
                kept.append((box, scores[i]))
        rows += kept
    rows = sorted(rows, key=lambda row: -row[1])[:after]
    return np.stack([box for box, _ in rows]), np.array([score for _, score in rows])


def test_proposals_are_the_best_of_each_map_after_suppression_within_it():
    arrays = levels(np.random.default_rng(0))
    for train, before in ((False, 12), (True, 30)):
        proposals = jax.jit(lambda *x, train=train: propose(*x, OPTIONS, train))(*arrays, SIZE)
        assert proposals.boxes.shape[1] == count_proposals([40, 25, 9], OPTIONS, train) == 20
        for image in range(2):
            boxes, logits = proposed_by_hand(image, *arrays, before, 20)
            count = len(boxes)
            assert count > 10
            np.testing.assert_array_equal(proposals.valid[image], np.arange(20) < count)
            np.testing.assert_allclose(proposals.boxes[image, :count], boxes, atol=1e-4)
            np.testing.assert_array_equal(proposals.logits[image, :count], logits)
            assert not proposals.boxes[image, count:].any()


def test_proposals_have_no_gradient():
    arrays = levels(np.random.default_rng(0))

    def total(logits, deltas):
        proposals = propose(logits, deltas, arrays[2], SIZE, OPTIONS, True)
        return proposals.boxes.sum() + proposals.logits.sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(*arrays[:2])
    assert not any(x.any() for x in jax.tree.leaves(gradients))


def test_anchors_learn_objectness_and_the_box_they_overlap_most():
    """Of predictions that are right where it counts, the losses are zero; and not otherwise."""
    rng = np.random.default_rng(2)
    anchors = draw_boxes(rng, 50)
    boxes = np.stack([anchors[[4, 9, 0]], anchors[[7, 8, 0]]]) + np.float32(0.5)
    valid = np.array([[True, True, False], [False] * 3])
    noise = rng.uniform(size=(2, 50)).astype('f')
    overlaps = np.where(valid[..., None], np.asarray(iou(boxes, anchors)), 0)
    best = overlaps.max(axis=1)
    positive = best >= 0.7
    assert positive[0].sum() >= 2
    target = encode(np.take_along_axis(boxes, overlaps.argmax(axis=1)[..., None], axis=1), anchors)
    deltas = np.where(positive[..., None], target, 99)
    logits = np.where(positive, 50, -50).astype('f')
    logits[(best >= 0.3) & ~positive] = 50  # neither
    run = jax.jit(lambda *x: proposal_losses(*x, anchors, boxes, valid, noise, OPTIONS))
    losses = run(logits, deltas)
    assert float(losses['objectness']) < 1e-6
    assert float(losses['proposal_box']) < 1e-6
    losses = run(-logits, deltas + 1)
    # 16 anchors of each of two images are drawn, or as many as there are.
    assert float(losses['objectness']) == 50
    assert float(losses['proposal_box']) * 32 == np.float32(4 * positive[0].sum())


def test_regions_are_drawn_from_proposals_and_the_truth_foreground_first():
    rng = np.random.default_rng(3)
    boxes = draw_boxes(rng, 2, 3)
    classes = np.array([[1, 0, -1], [-1, -1, -1]])
    near = boxes[:, [0, 0, 1, 1, 0]] + rng.uniform(-1, 1, (2, 5, 4)).astype('f')
    proposals = np.concatenate([near, draw_boxes(rng, 2, 10)], axis=1)
    valid = np.ones((2, 15), bool)
    valid[0, 0] = valid[1, 4:] = False
    noise = rng.uniform(size=(2, 18)).astype('f')
    proposals = Proposals(proposals, np.zeros((2, 15), 'f'), valid)
    run = jax.jit(lambda *x: draw_regions(*x, OPTIONS, 2))
    regions = run(proposals, boxes, classes, noise)
    assert foreground_regions(OPTIONS) == 3

    candidates = np.concatenate([proposals.boxes, boxes], axis=1)
    valid = np.concatenate([valid, classes >= 0], axis=1)
    for image in range(2):
        overlaps = np.array(iou(boxes[image], candidates[image]))
        overlaps[classes[image] < 0] = 0
        order = [i for i in np.argsort(noise[image]) if valid[image, i]]
        drawn = [i for i in order if overlaps[:, i].max() >= 0.5]
        assert len(drawn) > 3 or image == 1  # more than may be drawn, or none
        drawn = sorted(drawn[:3])
        foreground = len(drawn)
        drawn += sorted([i for i in order if overlaps[:, i].max() < 0.5][: 12 - foreground])
        count = len(drawn)
        np.testing.assert_array_equal(regions.valid[image], np.arange(12) < count)
        np.testing.assert_array_equal(regions.boxes[image, :count], candidates[image, drawn])
        assert (regions.label[image, foreground:] == 2).all()
        matched = overlaps.argmax(axis=0)[drawn[:foreground]]
        np.testing.assert_array_equal(regions.label[image, :foreground], classes[image, matched])
        np.testing.assert_array_equal(regions.matched[image, :foreground], matched)
        deltas = encode(
            boxes[image, matched], candidates[image, drawn[:foreground]], mask_rcnn.WEIGHTS
        )
        np.testing.assert_allclose(regions.deltas[image, :foreground], deltas, atol=1e-4)
        assert not regions.deltas[image, foreground:].any()


def test_targets_of_masks_are_cut_from_the_mask_of_the_object():
    """A disc and a bar, in regions that are shifted, larger and smaller than the object."""
    side = 112
    rows, columns = np.indices((side, side)) + 0.5
    disc = (rows - 56) ** 2 + (columns - 56) ** 2 < 50**2
    masks = np.stack([np.zeros_like(disc), disc, columns < 28])[None].astype(np.uint8)
    boxes = np.array([[[0, 0, 1, 1], [10, 20, 66, 48], [5, 5, 33, 61]]], 'f')
    matched = np.array([[1, 1, 2, 2, 1]])
    regions = [[10, 20, 66, 48], [0, 12, 70, 60], [5, 5, 33, 61], [-9, 30, 40, 70], [0, 0, 0, 0]]
    regions = np.array([regions], 'f')
    target = np.asarray(jax.jit(lambda *x: mask_targets(*x, 28))(masks, boxes, matched, regions))
    for number in range(4):
        x0, y0, x1, y1 = regions[0, number]
        a0, b0, a1, b1 = boxes[0, matched[0, number]]
        x = (x0 + (np.arange(28) + 0.5) * (x1 - x0) / 28 - a0) / (a1 - a0) * side
        y = (y0 + (np.arange(28) + 0.5) * (y1 - y0) / 28 - b0) / (b1 - b0) * side
        x, y = np.meshgrid(x, y)
        if matched[0, number] == 1:
            distance = np.hypot(x - 56, y - 56) - 50
        else:
            distance = np.max([x - 28, -x, -y, y - side], axis=0)
        clear = np.abs(distance) > 4  # further from the edge than a cell of the target
        assert clear.mean() > 0.6
        np.testing.assert_array_equal(target[0, number][clear], distance[clear] < 0)
    assert target[0, 0].any()
    assert not np.array(jnp.asarray(target)[0, 3])[:, :6].any()  # beyond the object's box


def test_masks_end_where_the_box_of_the_object_does():
    """Also coarse ones, of cells that are larger than those of the target; corners are rounded."""
    masks, boxes = np.ones((1, 1, 4, 4), np.uint8), np.array([[[10, 12, 18, 20]]], 'f')
    matched, regions = np.zeros((1, 1), int), np.array([[[6, 8, 20, 22]]], 'f')
    target = mask_targets(masks, boxes, matched, regions, 28)[0, 0]
    centres = np.arange(28) / 2 + 0.25
    inside = (centres > 4) & (centres < 12)
    np.testing.assert_array_equal(target[14], inside)
    np.testing.assert_array_equal(target[:, 14], inside)
