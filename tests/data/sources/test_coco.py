"""Annotations in COCO's format: what is read of them, what is left out, and what is refused."""

import json
import pickle

import numpy as np
import pytest
from helpers.coco import SQUARE, annotated, dataset, write_coco
from helpers.scenes import draw_scenes, runs
from pycocotools.coco import COCO

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.outlines import Pixels, read_outline
from mae_jax.data.sources.make import make_source
from mae_jax.errors import UserError

TRAIN = 'annotations/instances_train2017.json'


def open_coco(root, split='train', held_out_share=None, **instances):
    return make_source(
        'coco', split, path=str(root), held_out_share=held_out_share, instances=instances
    )


def opened(root, content, **options):
    write_coco(root, content, TRAIN, 'train2017')
    write_coco(root, dataset(1, [], first=90), TRAIN.replace('train', 'val'), 'val2017')
    return open_coco(root, **options)


@pytest.fixture
def scenes(tmp_path):
    draw_scenes(tmp_path, 30, 64, 0)
    draw_scenes(tmp_path, 4, 64, 1, split='val2017')
    return tmp_path


def test_boxes_classes_and_outlines_are_those_that_pycocotools_reads(scenes, capsys):
    source, api = open_coco(scenes), COCO(str(scenes / TRAIN))
    assert source.class_names == ['disc', 'square', 'triangle']
    assert source.category_ids.tolist() == [1, 3, 5]
    assert source.image_ids.tolist() == sorted(api.imgs)
    kinds = set()
    for index in range(len(source)):
        example, image = source[index], api.imgs[source.image_ids[index]]
        assert example['image'] == (scenes / 'train2017' / image['file_name']).read_bytes()
        assert example['label'] == -1 and example['name'].endswith(image['file_name'])
        assert example['size'] == (image['height'], image['width'])
        annotations = [a for a in api.imgToAnns[image['id']] if not a['iscrowd']]
        expected = np.reshape([a['bbox'] for a in annotations], (-1, 4))
        expected[:, 2:] += expected[:, :2]
        np.testing.assert_allclose(example['boxes'], expected, atol=1e-5)
        assert example['classes'].tolist() == [a['category_id'] // 2 for a in annotations]
        for given, box, annotation in zip(example['outlines'], expected, annotations, strict=True):
            outline = read_outline(given, box, example['size'])
            kinds.add(type(outline))
            whole = np.array([0, 0, max(example['size']), max(example['size'])])
            drawn = outline.within(whole, whole[2])[: image['height'], : image['width']]
            wrong = drawn != api.annToMask(annotation)
            # Along the outline, of polygons, pycocotools rounds.
            assert wrong.sum() <= (0 if isinstance(outline, Pixels) else drawn.sum() ** 0.5)
    assert len(kinds) == 2


def test_a_source_says_what_was_read_and_what_was_left_out(tmp_path):
    annotations = [
        *(annotated(5, iscrowd=1, segmentation=runs(np.eye(30, 40) > 0)) for _ in range(2)),
        annotated(5, bbox=[4, 4, 0, 10]),
        annotated(5, bbox=[50, 4, 10, 10]),
        annotated(5, segmentation=[[4, 4, 9, 9, 14, 14]]),
        annotated(6, segmentation=[[4, 4, 14, 14]]),
        annotated(6, segmentation=runs(np.zeros((30, 40), bool))),
        *(annotated(5) for _ in range(3)),
        annotated(6, segmentation=[]),
        annotated(77),
        annotated(78, category=99),
    ]
    source = opened(tmp_path, dataset(4, annotations), max_boxes=2)
    assert source.reading == (
        f'4 images in {TRAIN}, 2 classes, 4 instances, 2 crowds, 2 empty boxes and 3 masks '
        'without area left out of training, 2 annotations of images that are not listed left out, '
        '1 box without an outline, which is then that of the box, 2 images without instances',
        '1 image has more instances than dataset.max_boxes=2, at most 3: the largest ones are used',
    )
    assert open_coco(tmp_path, 'val').reading == (
        '1 image held out in annotations/instances_val2017.json, 2 classes, no instances',
    )
    assert [len(source[i]['boxes']) for i in range(4)] == [3, 1, 0, 0]
    assert source[3]['boxes'].shape == (0, 4)
    plain = opened(tmp_path, dataset(1, [annotated(5)]), max_boxes=2)
    assert plain.reading == (f'1 image in {TRAIN}, 2 classes, 1 instance',)


def test_boxes_end_at_the_edge_of_the_image(tmp_path):
    boxes = [[-3, 20, 10, 30], [35.5, -1, 100, 4.25]]
    source = opened(tmp_path, dataset(1, [annotated(5, bbox=box) for box in boxes]))
    np.testing.assert_array_equal(source[0]['boxes'], [[0, 20, 7, 30], [35.5, 0, 40, 3.25]])


def test_annotations_of_an_image_may_lie_apart(tmp_path):
    annotations = [annotated(image, bbox=[i, 0, 5, 5]) for i, image in enumerate((6, 5, 7, 6, 5))]
    annotations[3]['segmentation'] = runs(np.eye(30, 40) > 0)
    source = opened(tmp_path, dataset(3, annotations))
    assert [source[i]['boxes'][:, 0].tolist() for i in range(3)] == [[1, 4], [0, 3], [2]]
    kinds = [[type(outline) for outline in source[i]['outlines']] for i in range(3)]
    assert kinds == [[list, list], [list, dict], [list]]


def test_categories_are_counted_in_the_order_of_their_ids(tmp_path):
    content = dataset(1, [annotated(5, 90), annotated(5, 3), annotated(5, 17)], (90, 3, 17))
    source = opened(tmp_path, content)
    assert source.class_names == ['c3', 'c17', 'c90']
    assert source[0]['classes'].tolist() == [2, 0, 1]


def test_what_exports_leave_out_or_write_otherwise_is_read_too(tmp_path):
    annotations = [
        annotated(5, bbox=None, area=None, iscrowd=None),
        annotated(5, segmentation=SQUARE[0]),
        annotated(5, segmentation=None),
        annotated(5, bbox=None, segmentation=runs(np.tri(30, 40) > 0)),
        annotated(5, attributes={'occluded': False}, segmentation=[[1, 2], *SQUARE]),
    ]
    content = dataset(2, annotations)
    content['images'].reverse()
    content['images'][0]['file_name'] = '.\\deep\\1.png'
    write_coco(tmp_path, content, TRAIN, 'train2017')
    (tmp_path / 'train2017/deep').mkdir()
    (tmp_path / 'train2017/.\\deep\\1.png').rename(tmp_path / 'train2017/deep/1.png')
    example = open_coco(tmp_path, 'train2017')[0]
    expected = [[4, 4, 14, 14]] * 3 + [[0, 0, 30, 30], [4, 4, 14, 14]]
    np.testing.assert_array_equal(example['boxes'], expected)
    outlines = example['outlines']
    assert outlines[2] is None and len(outlines[4]) == 1
    for polygons in (outlines[0], outlines[1], outlines[4]):
        np.testing.assert_array_equal(polygons[0], np.reshape(SQUARE, (4, 2)))


def test_the_truth_for_pycocotools_has_what_training_leaves_out_and_exports_lack(tmp_path):
    annotations = [
        annotated(5, iscrowd=1, segmentation=runs(np.eye(30, 40) > 0), area=30.0),
        annotated(6, bbox=None, area=None, iscrowd=None),
        annotated(5, segmentation=None, area=None),
        annotated(77),
        annotated(5, segmentation=[[1, 2, 3, 4]]),
    ]
    content = dataset(3, annotations)
    source = opened(tmp_path, content)
    truth = source.ground_truth()
    assert [image['id'] for image in truth['images']] == [5, 6, 7]
    assert truth['categories'] == content['categories']
    api = COCO()
    api.dataset = truth
    api.createIndex()
    assert sorted(api.anns) == [1, 2, 3, 4]
    assert [api.anns[i]['iscrowd'] for i in api.anns] == [1, 0, 0, 0]
    assert [api.anns[i]['area'] for i in api.anns] == [30, 100, 100, 100]
    assert api.anns[2]['bbox'] == [4, 4, 10, 10]
    assert [api.annToMask(api.anns[i]).sum() for i in api.anns] == [30, 100, 100, 0]


def test_the_truth_of_a_held_out_part_is_of_its_images_alone(tmp_path):
    write_coco(tmp_path, dataset(40, [annotated(5 + i) for i in range(40)]), 'all.json', '')
    train, held_out = (open_coco(tmp_path, split) for split in ('train', 'val'))
    for source in (train, held_out):
        truth = source.ground_truth()
        ids = [image['id'] for image in truth['images']]
        assert ids == source.image_ids.tolist() and len(truth['annotations']) == len(ids)


def test_a_source_can_be_pickled_and_its_arrays_are_sent_beside_it(scenes):
    source = open_coco(scenes)
    buffers = []
    pickled = pickle.dumps(source, protocol=5, buffer_callback=buffers.append)
    copy = pickle.loads(pickled, buffers=buffers)
    assert copy.identity == source.identity
    assert copy[3]['boxes'].tolist() == source[3]['boxes'].tolist()
    assert len(pickled) < 100 * len(source)
    assert sum(buffer.raw().nbytes for buffer in buffers) > len(pickled)


def test_a_source_is_known_by_its_annotations(tmp_path):
    def identity(**fields):
        return opened(tmp_path, dataset(2, [annotated(5, **fields)])).identity

    changes = [{'bbox': [4, 4, 10, 9]}, {'category': 4}, {'segmentation': [[4, 4, 9, 4, 9, 9]]}]
    changes.append({'segmentation': runs(np.eye(30, 40) > 0)})
    assert len({identity(), *(identity(**change) for change in changes)}) == 5
    assert identity(area=7.0, score=1.0) == identity()


def test_a_file_that_vanishes_is_named(tmp_path):
    source = opened(tmp_path, dataset(2, []))
    (tmp_path / 'train2017/1.png').unlink()
    with pytest.raises(BadImage, match=r'train2017/1\.png cannot be read: No such file'):
        source[1]


def test_pycocotools_is_asked_for_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"needs pycocotools: `pip install 'mae_jax\[detect\]'`"):
        open_coco(tmp_path)


def change(index=0, where='annotations', **fields):
    def apply(content):
        content[where][index] |= fields

    return apply


@pytest.mark.parametrize(
    ('apply', 'message'),
    [
        (change(category_id=3), r'annotation 0 is of category 3, which is none of the 2 that'),
        (change(image_id='x'), r'annotation 0 cannot be read: .*str'),
        (change(bbox=[1, 2, 3]), r'annotation 0 .*bbox=\[1, 2, 3\] must be x, y, width and height'),
        (change(bbox=[1, float('nan'), 3, 4]), r'annotation 0 .*must be x, y, width and height'),
        (change(bbox=None, segmentation=None), r'annotation 0 .*neither bbox nor segmentation'),
        (change(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), r'annotation 0 .*must alternate'),
        (change(segmentation=[[1, 2, 3, 4, 5, 1e999]]), r'annotation 0 .*must alternate'),
        (change(segmentation=[[1, 2, 3, 4, 5, 1e300]]), r'has a polygon with a number beyond 1e38'),
        (change(segmentation=[['a'] * 6]), r'annotation 0 cannot be read: '),
        (
            change(segmentation={'size': [30, 40], 'counts': [1000, 100]}),
            r'annotation 0 cannot .*counts of its mask are not those of 30 x 40 pixels',
        ),
        (
            change(segmentation={'size': [30, 40], 'counts': [-1, 1201]}),
            r'annotation 0 cannot .*counts of its mask are not those of 30 x 40 pixels',
        ),
        (
            change(segmentation={'size': [30, 40], 'counts': 'o'}),
            r'annotation 0 .*compressed runs that end within a number',
        ),
        (
            change(segmentation={'size': [2**32 + 30, 40], 'counts': [40 * (2**32 + 30)]}),
            r'counts of its mask are not those of 4294967326 x 40 pixels',
        ),
        (
            change(segmentation={'size': [40, 30], 'counts': [0, 1200]}),
            r'mask of annotation 0 has 30 x 40 pixels where its image has 40 x 30: make both',
        ),
        (change(segmentation={'counts': [3]}), r'annotation 0 cannot be read: it has no size'),
        (change(where='images', id=6), r'two images with the id 6'),
        (change(where='images', id='a'), r'id of .* in images must be a whole number'),
        (change(where='images', width=0), r'must have 1 to 89,478,485 pixels'),
        (change(where='images', height=10**9), r'must have 1 to 89,478,485 pixels'),
        (change(where='images', file_name=None), r'file_name of .* in images must be a text'),
        (change(where='categories', id=4), r'two categories with the id 4'),
        (lambda content: content.pop('images'), r'no file of COCO\'s annotations'),
        (lambda content: content.pop('categories'), r'lists no category'),
        (lambda content: content['images'].clear(), r'lists no image'),
    ],
)
def test_annotations_that_do_not_work_are_explained_in_one_sentence(tmp_path, apply, message):
    content = dataset(2, [annotated(5)])
    write_coco(tmp_path, content, TRAIN, 'train2017')
    apply(content)
    (tmp_path / TRAIN).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as raised:
        open_coco(tmp_path)
    assert str(raised.value).endswith('.') and '\n' not in str(raised.value)
    assert TRAIN in str(raised.value)
