"""Average precision of detections made by hand: that of pycocotools' own run over files."""

import contextlib
import io
import json

import numpy as np
import pytest
from helpers.detections import Truth, annotation, example, outputs_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mae_jax.evaluation.exact import count_examples, merge
from mae_jax.tasks.detect_metrics import KINDS, SUMMARY, Precision, precision_of

FOUND = [
    (0, [(0, 0.9, (11, 9, 41, 31)), (1, 0.8, (45, 5, 75, 45)), (1, 0.7, (2, 2, 30, 30))]),
    (1, [(0, 0.95, (5, 50, 55, 95)), (0, 0.6, (0, 0, 14, 13)), (0, 0.2, (6, 51, 50, 90))]),
    (2, [(1, 0.55, (10, 10, 40, 40))]),  # nothing is there
    (-1, [(0, 0.99, (0, 0, 5, 5))]),  # padding
    (3, [(1, 0.5, (3, 4, 23, 34)), (0, 0.45, (10, 20, 30, 50))]),  # the latter within the crowd
]


def evaluated(batches, truth) -> Precision:
    total = None
    for rows in batches:
        total = merge(total, outputs_of(rows, truth))
    return precision_of(total, truth)


def by_pycocotools(truth, results, tmp_path, images=None) -> dict[str, float]:
    """As anybody runs it: files of annotations and of results."""
    (tmp_path / 'truth.json').write_text(json.dumps(truth.ground_truth()))
    values = {}
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(tmp_path / 'truth.json'))
        for kind, name in KINDS.items():
            # With a box beside it a mask would count by the area of the box.
            kept = [{n: x for n, x in r.items() if kind == 'box' or n != 'bbox'} for r in results]
            (tmp_path / 'results.json').write_text(json.dumps(kept))
            run = COCOeval(api, api.loadRes(str(tmp_path / 'results.json')), name)
            if images is not None:
                run.params.imgIds = images
            run.evaluate()
            run.accumulate()
            run.summarize()
            values |= {f'{kind}_{key}': x for key, x in zip(SUMMARY, run.stats, strict=False)}
    return values


@pytest.mark.parametrize('sizes', [(5,), (1, 1, 1, 1, 1), (2, 3)])
def test_it_is_pycocotools_own_whatever_the_batches(sizes, tmp_path):
    truth, starts = example(), np.cumsum((0, *sizes))
    batches = [FOUND[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    precision = evaluated(batches, truth)
    expected = by_pycocotools(truth, json.loads(precision.text()), tmp_path)
    assert expected['box_ap_large'] == -1  # no object is so large, and nothing is logged
    expected = {name: value for name, value in expected.items() if value >= 0}
    assert precision.compute() == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected['box_ap'] < 0.9 and 0.3 < expected['mask_ap'] < 0.9
    assert count_examples(precision) == 4


def test_records_are_at_the_size_of_the_original_with_the_ids_of_the_annotations():
    records = evaluated([FOUND], example()).records
    assert [record['image_id'] for record in records] == [7] * 3 + [3] * 3 + [12] + [9] * 2
    assert [record['category_id'] for record in records] == [2, 5, 5, 2, 2, 2, 5, 5, 2]
    first = records[0]
    assert first['bbox'] == [11, 9, 30, 22] and first['score'] == pytest.approx(0.9)
    assert first['segmentation']['size'] == [50, 80]


def test_images_without_annotations_count():
    """A false detection in one lowers the precision of its class."""
    truth = example()
    without = evaluated([[row for row in FOUND if row[0] != 2]], truth)
    assert without.examples == 3
    with_it = evaluated([[(2, [(1, 0.97, (10, 10, 40, 40))])], FOUND[:2], FOUND[3:]], truth)
    assert with_it.values['box_ap'] < without.values['box_ap']


def test_only_images_that_were_evaluated_count(tmp_path):
    truth = example()
    precision = evaluated([FOUND[:1]], truth)
    expected = by_pycocotools(truth, precision.records, tmp_path, images=[7])
    assert precision.values['box_ap'] == pytest.approx(expected['box_ap'])
    assert precision.values['box_ap'] > evaluated([FOUND[:1], [(1, [])]], truth).values['box_ap']


def test_every_category_has_its_precision():
    per_class = evaluated([FOUND], example()).per_class
    np.testing.assert_array_equal(per_class.count, [3, 2])  # the crowd is no object
    overall = evaluated([FOUND], example()).values
    assert per_class.compute()[0].mean() == pytest.approx(overall['box_ap'])
    assert per_class.compute()[1].mean() == pytest.approx(overall['mask_ap'])
    only = Truth([(50, 80)], [annotation(7, 2, 10, 10, 30, 20)])
    precision = evaluated([[(0, [(0, 0.9, (10, 10, 40, 30))])]], only)
    np.testing.assert_allclose(precision.per_class.compute(), [[1, np.nan], [1, np.nan]])


def test_no_detections_are_precision_zero():
    precision = evaluated([[(0, []), (1, [])]], example())
    assert precision.values['box_ap'] == precision.values['mask_ap'] == 0
    assert precision.text() == '[]'


def test_without_any_object_there_is_no_precision():
    empty = Truth([(50, 80)], [])
    assert evaluated([[(0, [(0, 0.9, (10, 10, 40, 30))])]], empty).values == {}
