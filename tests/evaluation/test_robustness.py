"""Errors of corruptions, and the outputs of a model that belong to the classes of a data set."""

import numpy as np
import pytest

from mae_jax.data.transforms.corruptions import CORRUPTIONS
from mae_jax.errors import UserError
from mae_jax.evaluation.robustness import (
    ALEXNET,
    imagenet_wnids,
    match_classes,
    mean_corruption_error,
    put_first,
    with_classes,
)


def test_alexnet_has_an_mce_of_one_and_a_model_of_half_its_errors_one_half():
    assert tuple(ALEXNET) == CORRUPTIONS
    spread = np.array([-0.2, -0.1, 0, 0.1, 0.2])  # AlexNet's figures are means over severities
    for factor in (1, 0.5):
        errors = {name: factor * (error + spread) for name, error in ALEXNET.items()}
        assert mean_corruption_error(errors) == pytest.approx(factor)


def test_every_corruption_counts_the_same_whatever_its_own_level():
    errors = {name: [0.0] * 5 for name in ALEXNET}
    errors['brightness'] = [0.1, 0.2, 0.3, 0.4, 0.5]
    errors['impulse_noise'] = [1.0, 1.0, 1.0, 1.0, 0.0]
    by_hand = (0.3 / 0.564592 + 0.8 / 0.922640) / 15
    assert mean_corruption_error(errors) == pytest.approx(by_hand)


def test_the_wnids_of_imagenet_are_in_the_order_of_its_labels():
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000 and wnids == sorted(wnids)
    known = {0: 'n01440764', 1: 'n01443537', 207: 'n02099601', 999: 'n15075141'}  # tench, ...
    assert {index: wnids[index] for index in known} == known


def test_outputs_are_those_of_the_classes_by_name():
    names = ['ant', 'bee', 'cow', 'dog']
    assert match_classes(names, ['cow', 'ant'], 'photos', 'runs/a') == [2, 0]
    assert put_first([2, 0], 4) == [2, 0, 1, 3]


def test_an_unknown_class_is_named():
    with pytest.raises(
        UserError, match=r'photos has 2 classes that runs/a .*\(cat, elk\): .* are ant, bee; '
    ):
        match_classes(['ant', 'bee'], ['cat', 'bee', 'elk'], 'photos', 'runs/a')


@pytest.mark.parametrize('alone', [None, [0, 2]])
def test_a_head_of_other_outputs_has_their_logits(alone):
    rng = np.random.default_rng(0)
    head = {'kernel': rng.normal(size=(3, 4)), 'bias': rng.normal(size=4)}
    features, columns = rng.normal(size=(50, 3)), [3, 1, 0, 2]
    logits = (features @ head['kernel'] + head['bias'])[:, columns]
    new = with_classes(head, columns, alone)
    actual = features @ new['kernel'] + new['bias']
    kept = slice(None) if alone is None else alone
    np.testing.assert_allclose(actual[:, kept], logits[:, kept])
    if alone:
        best = np.array(alone)[logits[:, alone].argmax(axis=1)]
        np.testing.assert_array_equal(actual.argmax(axis=1), best)
        assert (logits.argmax(axis=1) != best).any()
