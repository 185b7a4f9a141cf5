"""The five losses by hand, in NumPy, one number after the other."""

import jax
import numpy as np
import pytest

from mae_jax.models.detection import losses

B, R, K = 2, 7, 3


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype('f') * 2


def entropy(logit: float, target: bool) -> float:
    probability = 1 / (1 + np.exp(-np.float64(logit)))
    return -np.log(probability if target else 1 - probability)


LABEL = np.array([[0, 2, 3, 3, 1, 3, 0], [3, 3, 3, 1, 3, 3, 3]])
VALID = np.array([[True] * 6 + [False], [True, False, True, True, False, True, False]])


def test_objectness_is_summed_over_what_was_drawn_and_divided_by_all_samples():
    logits, label = draw(B, R), LABEL % 2
    total = sum(entropy(logits[i], label[i]) for i in zip(*np.nonzero(VALID), strict=True))
    loss = losses.objectness_loss(logits, label, VALID, 16)
    assert float(loss) == pytest.approx(total / (16 * B), rel=1e-5)


def test_boxes_of_proposals_are_divided_by_all_samples_too():
    deltas, target = draw(B, R, 4), draw(B, R, 4)[::-1]
    positive = VALID & (LABEL == 1)
    total = np.abs(deltas - target)[positive].sum()
    loss = losses.proposal_box_loss(deltas, target, positive, 16)
    assert float(loss) == pytest.approx(total / (16 * B), rel=1e-5)


def test_classes_are_averaged_over_valid_proposals():
    logits = draw(B, R, K + 1)
    total = 0
    for place in zip(*np.nonzero(VALID), strict=True):
        exponentials = np.exp(logits[place].astype(float))
        total -= np.log(exponentials[LABEL[place]] / exponentials.sum())
    loss = losses.class_loss(logits, LABEL, VALID)
    assert float(loss) == pytest.approx(total / VALID.sum(), rel=1e-5)


def test_boxes_are_those_of_the_class_and_divided_by_valid_proposals():
    deltas, target = draw(B, R, K, 4), draw(B, R, 4)
    total = sum(
        np.abs(deltas[place][LABEL[place]] - target[place]).sum()
        for place in zip(*np.nonzero(VALID & (LABEL < K)), strict=True)
    )
    loss = losses.box_loss(deltas, target, LABEL, VALID)
    assert float(loss) == pytest.approx(total / VALID.sum(), rel=1e-5)


def test_masks_are_those_of_the_class_and_averaged_over_foreground():
    logits, target = draw(B, R, 4, 4, K), draw(B, R, 4, 4) > 0
    foreground = VALID & (LABEL < K)
    each = [
        entropy(logits[image, box, i, j, LABEL[image, box]], target[image, box, i, j])
        for image, box in zip(*np.nonzero(foreground), strict=True)
        for i, j in np.ndindex(4, 4)
    ]
    loss = losses.mask_loss(logits, target, LABEL, foreground)
    assert float(loss) == pytest.approx(np.mean(each), rel=1e-5)


def test_without_foreground_the_losses_of_boxes_and_masks_are_zero_and_so_are_gradients():
    """Targets of what does not count may be anything."""
    nothing, label = np.zeros((B, R), bool), np.full((B, R), K)
    target = np.full((B, R, 4), np.inf, 'f')

    def loss(deltas, masks, logits):
        boxes = losses.box_loss(deltas, target, label, VALID)
        masks = losses.mask_loss(masks, masks[..., 0] > 0, label, nothing)
        anchors = losses.proposal_box_loss(deltas[:, :, 0], target, nothing, 16)
        return boxes + masks + anchors + losses.class_loss(logits, label, nothing)

    arrays = draw(B, R, K, 4), draw(B, R, 4, 4, K), draw(B, R, K + 1)
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)
