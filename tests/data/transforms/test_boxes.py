"""Views of images with objects: detectron2's steps restated, torchvision's boxes, COCO's masks."""

import io

import numpy as np
import pytest
from helpers.images import encode, smooth_picture
from helpers.scenes import runs, scene
from PIL import Image
from pycocotools import mask as masks

from mae_jax.data.images.decode import BadImage
from mae_jax.data.transforms.boxes import (
    MASK_SIDE,
    eval_instances,
    fit,
    resize_part,
    train_instances,
)
from mae_jax.data.transforms.color_jitter import ColorJitter
from mae_jax.errors import UserError

FILL = (123.675, 116.28, 103.53)
PADDING = (124, 116, 104)
SIZE = (64, 80)
OPTIONS = dict(image_size=SIZE, channels=3, jitter=(0.1, 2.0), max_boxes=12, flip=True, fill=FILL)


def record_of(seed, size=90, shapes=6):
    """A scene as a source has it, all of whose shapes have outlines of both kinds in turn."""
    pixels, annotations = scene(np.random.default_rng(seed), size, shapes)
    boxes = np.array([each['bbox'] for each in annotations])
    boxes[:, 2:] += boxes[:, :2]
    outlines = [outline_of(each['segmentation']) for each in annotations]
    return {
        'image': encode(Image.fromarray(pixels), 'PNG'),
        'name': f'scene/{seed}',
        'size': pixels.shape[:2],
        'boxes': boxes,
        'classes': np.array([each['category_id'] // 2 for each in annotations]),
        'outlines': outlines,
    }


def outline_of(given):
    if isinstance(given, dict):
        return {'size': tuple(given['size']), 'counts': np.array(given['counts'])}
    return [np.reshape(ring, (-1, 2)) for ring in given]


def train(record, index=0, **options):
    return train_instances(record, **dict(seed=3, epoch=2, index=index) | OPTIONS | options)


def pixels_of(record):
    return Image.open(io.BytesIO(record['image']))


def drawn_view(record, index, view=0, size=SIZE, jitter=(0.1, 2.0)):
    """Restates the draws: (new width and height, left and top of the crop, whether mirrored)."""
    rng = np.random.default_rng((3, 1, 2, index, view)[: 5 if view else 4])
    width, height = pixels_of(record).size
    factor = rng.uniform(*jitter)
    scale = min(size[0] * factor / height, size[1] * factor / width)
    new = int(np.round(width * scale)), int(np.round(height * scale))
    top = int(rng.integers(0, max(new[1] - size[0], 0) + 1))
    left = int(rng.integers(0, max(new[0] - size[1], 0) + 1))
    return new, (left, top), rng.random() < 0.5


def whole_mask(given, height, width):
    """The mask of an annotation, by pycocotools."""
    if isinstance(given, dict):
        packed = {'size': list(given['size']), 'counts': given['counts'].tolist()}
        return masks.decode(masks.frPyObjects(packed, height, width))
    rings = [ring.ravel().tolist() for ring in given]
    return masks.decode(masks.merge(masks.frPyObjects(rings, height, width)))


@pytest.mark.parametrize('index', range(8))
def test_pixels_are_resized_cropped_mirrored_and_padded(index):
    record = record_of(index)
    (new, (left, top), mirror), view = drawn_view(record, index), train(record, index)
    whole = np.asarray(pixels_of(record).resize(new, Image.Resampling.BILINEAR))
    part = whole[top : top + SIZE[0], left : left + SIZE[1]]
    part = part[:, ::-1] if mirror else part
    (height, width), image = part.shape[:2], view['image'][0]
    assert view['size'].tolist() == [[height, width]]
    assert np.abs(image[:height, :width].astype(int) - part).max() <= 1
    assert (image[height:] == PADDING).all() and (image[:, width:] == PADDING).all()


def reference(record, index):
    """What is seen of each object: its box, or None, by pycocotools' mask and Pillow's steps."""
    (new, (left, top), mirror) = drawn_view(record, index)
    old = pixels_of(record).size
    height, width = min(SIZE[0], new[1]), min(SIZE[1], new[0])
    scales = np.divide(new, old)
    boxes, seen = [], []
    for box, outline in zip(record['boxes'], record['outlines'], strict=True):
        box = (box.reshape(2, 2) * scales - (left, top)).ravel()
        # Four times as fine, so that pycocotools' pixels are small.
        fine = [4 * (ring * scales - (left, top)) for ring in outline]
        shift = 4 * 400
        mask = whole_mask([ring + shift for ring in fine], 8 * 400, 8 * 400)
        mask = mask[shift : shift + 4 * height, shift : shift + 4 * width]
        if mirror:
            box, mask = np.array([width - box[2], box[1], width - box[0], box[3]]), mask[:, ::-1]
        boxes.append(box), seen.append(mask)
    return boxes, seen, (height, width)


@pytest.mark.parametrize('index', range(6))
def test_boxes_and_masks_follow_the_pixels(index):
    """Of polygons alone; the box of what a crop cuts is that of what is seen of it."""
    record = record_of(index)
    polygons = [i for i, each in enumerate(record['outlines']) if isinstance(each, list)]
    record = record | {name: record[name][polygons] for name in ('boxes', 'classes')}
    record['outlines'] = [record['outlines'][i] for i in polygons]
    view, (boxes, seen, size) = train(record, index), reference(record, index)
    row = 0
    for box, mask, number in zip(boxes, seen, record['classes'], strict=True):
        if mask.sum() < 16:  # a square pixel
            continue
        actual = view['boxes'][0, row]
        limits = np.tile(size[::-1], 2)
        if (box >= 0).all() and (box <= limits).all():
            np.testing.assert_allclose(actual, box, atol=1e-4)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        expected = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 4
        # The box of a scene's shape is of whole pixels, of which the tips of a triangle are less.
        new, old = drawn_view(record, index)[0], pixels_of(record).size
        np.testing.assert_allclose(actual, expected, atol=0.3 + new[0] / old[0])
        steps = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE
        x = ((actual[0] + steps * (actual[2] - actual[0])) * 4).astype(int)
        y = ((actual[1] + steps * (actual[3] - actual[1])) * 4).astype(int)
        x, y = np.minimum(x, mask.shape[1] - 1), np.minimum(y, mask.shape[0] - 1)
        wrong = (view['masks'][0, row] != mask[y[:, None], x]).mean()
        assert wrong < 0.3 / (actual[2:] - actual[:2]).min(), (row, wrong)
        assert view['classes'][0, row] == number
        row += 1
    assert (view['classes'][0, row:] == -1).all() and not view['boxes'][0, row:].any()
    assert not view['masks'][0, row:].any()


def test_masks_of_pixels_follow_like_those_of_polygons():
    """Of a mask drawn finely from the polygon, to a hundredth of a pixel where nothing is cut."""
    square = np.array([[10, 20], [50, 20], [50, 60], [10, 60]], float)
    rows, columns = np.indices((90, 80))
    mask = (rows >= 20) & (rows < 60) & (columns >= 10) & (columns < 50)
    given = runs(mask)
    record = record_of(0) | {
        'image': encode(smooth_picture(0, 80, 90), 'PNG'),
        'size': (90, 80),
        'boxes': np.array([[10, 20, 50, 60.0]]),
        'classes': np.array([2]),
    }
    kinds = ([square], outline_of(given), mask, mask.astype(np.uint8), None)
    for index in range(12):
        views = [train(record | {'outlines': [outline]}, index) for outline in kinds]
        for view in views[1:]:
            for name in ('boxes', 'classes', 'masks'):
                np.testing.assert_allclose(view[name], views[0][name], atol=1e-4)


def test_views_of_torchvision_have_the_same_boxes():
    torch = pytest.importorskip('torch')
    tv = pytest.importorskip('torchvision.transforms.v2.functional')
    from torchvision.tv_tensors import BoundingBoxes

    for index in range(12):
        record = record_of(index)
        record['outlines'] = [None] * len(record['boxes'])  # the box of what is seen is the box cut
        (new, (left, top), mirror), view = drawn_view(record, index), train(record, index)
        old = pixels_of(record).size
        boxes = torch.tensor(record['boxes'], dtype=torch.float64)
        boxes = BoundingBoxes(boxes, format='XYXY', canvas_size=old[::-1])
        boxes = tv.resize(boxes, list(new[::-1]))
        height, width = min(SIZE[0], new[1]), min(SIZE[1], new[0])
        boxes = tv.clamp_bounding_boxes(tv.crop(boxes, top, left, height, width))
        boxes = (tv.horizontal_flip(boxes) if mirror else boxes).numpy()
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 1e-5]
        actual = view['boxes'][0][view['classes'][0] >= 0]
        np.testing.assert_allclose(actual, boxes, atol=1e-3)


def test_what_is_cut_to_nothing_is_left_out_and_of_many_the_largest_stay():
    record = record_of(4, shapes=6)
    everything = train(record, jitter=(1.0, 1.0), flip=False)
    count = (everything['classes'] >= 0).sum()
    assert count == len(record['boxes']) >= 5
    sides = everything['boxes'][0, :count, 2:] - everything['boxes'][0, :count, :2]
    largest = np.sort(np.argsort(-np.prod(sides, axis=1))[:3])
    few = train(record, jitter=(1.0, 1.0), flip=False, max_boxes=3)
    for name in ('boxes', 'classes', 'masks'):
        np.testing.assert_array_equal(few[name][0], everything[name][0][largest])
    seen = [(train(record, i, jitter=(3.0, 3.0))['classes'] >= 0).sum() for i in range(10)]
    assert min(seen) < count and max(seen) > 0


def test_a_thin_outline_that_holds_no_centre_of_a_cell_is_left_out():
    line = np.array([[10, 20], [50, 60], [50.001, 60], [10.001, 20]], float)
    record = record_of(0) | {'boxes': np.array([[10, 20, 50, 60.0]]), 'classes': np.array([0])}
    view = train(record | {'outlines': [[line]]}, jitter=(1.0, 1.0))
    assert (view['classes'] == -1).all()


def test_an_image_without_objects_is_a_view_like_any_other():
    record = record_of(1) | {'boxes': np.zeros((0, 4)), 'classes': np.zeros(0), 'outlines': []}
    view = train(record)
    assert (view['classes'] == -1).all() and not view['boxes'].any() and not view['masks'].any()
    assert view['image'].std() > 5


def test_shapes_and_dtypes_are_those_that_a_batch_has():
    view = train(record_of(2), repeats=3)
    assert {name: (x.shape, x.dtype.name) for name, x in view.items()} == {
        'image': ((3, 64, 80, 3), 'uint8'),
        'size': ((3, 2), 'int32'),
        'boxes': ((3, 12, 4), 'float32'),
        'classes': ((3, 12), 'int32'),
        'masks': ((3, 12, 112, 112), 'uint8'),
    }
    once = train(record_of(2))
    for name in view:
        np.testing.assert_array_equal(view[name][0], once[name][0])
    assert len({x.tobytes() for x in view['image']}) == 3
    np.testing.assert_array_equal(
        view['size'][1], np.minimum(drawn_view(record_of(2), 0, view=1)[0][::-1], SIZE)
    )


def test_augmentation_changes_pixels_of_the_image_alone():
    plain = train(record_of(2), 5)
    changed = train(record_of(2), 5, augment=ColorJitter(0.4, 0.4, 0.4, 0.1))
    assert (plain['image'] != changed['image']).any()
    for name in ('size', 'boxes', 'classes', 'masks'):
        np.testing.assert_array_equal(plain[name], changed[name])
    height, width = plain['size'][0]
    np.testing.assert_array_equal(plain['image'][0, height:], changed['image'][0, height:])
    np.testing.assert_array_equal(plain['image'][0, :, width:], changed['image'][0, :, width:])


@pytest.mark.parametrize('dtype', ['uint16', 'float32'])
def test_data_of_other_depths_are_resized_band_by_band(dtype):
    whole = (np.random.default_rng(0).random((40, 50, 4)) * 1000).astype(dtype)
    full, start, size = (60, 75), (11, 7), (30, 40)
    part = resize_part(whole, full, start, size)
    assert part.dtype == dtype
    complete = resize_part(whole, full, (0, 0), full)[7:37, 11:51]
    np.testing.assert_allclose(part.astype(float), complete, atol=1.0 if dtype == 'uint16' else 0.1)


@pytest.mark.parametrize('size', [(480, 640), (427, 640), (333, 500), (7, 900), (64, 80)])
def test_evaluation_fits_the_long_side_as_detectron2_does(size):
    for limit in (64, 1024):
        height, width = size
        # detectron2's ResizeShortestEdge(limit, max_size=limit)
        scale = limit / min(height, width)
        h, w = (limit, scale * width) if height < width else (scale * height, limit)
        if max(h, w) > limit:
            h, w = h * limit / max(h, w), w * limit / max(h, w)
        assert fit(size, (limit, limit)) == (max(int(h + 0.5), 1), max(int(w + 0.5), 1))


def test_a_row_of_evaluation_has_the_whole_image_and_its_size():
    record = record_of(6)
    row = eval_instances(record, image_size=SIZE, channels=3, fill=FILL)
    width, height = pixels_of(record).size
    assert row['original_size'].tolist() == [[height, width]]
    h, w = row['size'][0]
    assert h == 64 or w == 80
    expected = np.asarray(pixels_of(record).resize((int(w), int(h)), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(row['image'][0, :h, :w], expected)
    assert (row['image'][0, h:] == PADDING).all() and (row['image'][0, :, w:] == PADDING).all()


def test_an_image_of_another_size_than_its_boxes_is_refused():
    record = record_of(3)
    height, width = record['size']
    for size, hint in (((width, height), 'try dataset.apply_exif=True'), ((5, 6), 'correct its')):
        for make in (train, lambda r: eval_instances(r, image_size=SIZE, channels=3, fill=FILL)):
            with pytest.raises(BadImage, match=f'scene/3 has {width} x {height} pixels .* {hint}'):
                make(record | {'size': size})


def test_examples_without_boxes_and_masks_of_another_size_are_refused():
    record = record_of(3)
    with pytest.raises(UserError, match="scene/3 has no boxes: give dataset.name='coco'"):
        train({name: record[name] for name in ('image', 'name', 'size')})
    wrong = [np.zeros((3, 3), np.uint8)] * len(record['boxes'])
    with pytest.raises(BadImage, match=r'scene/3: a mask of \(3, 3\) for an image of'):
        train(record | {'outlines': wrong})
