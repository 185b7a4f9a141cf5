"""Pictures of detections, pixel by pixel where no letter stands."""

import numpy as np

from mae_jax.visualization.detection import OPACITY, SIDE, Instances, detection_columns

NAMES = ('disc', 'square')
COLOURS = np.uint8([[200, 0, 0], [0, 0, 200]])
GREY = 100


def instances(*found):
    """(class, score, box) of each in an image of 160 x 200; masks fill the boxes."""
    masks = np.zeros((len(found), 160, 200), bool)
    for mask, (*_, (x0, y0, x1, y1)) in zip(masks, found, strict=True):
        mask[y0:y1, x0:x1] = True
    boxes = np.array([box for *_, box in found], np.float32).reshape(-1, 4)
    classes = np.array([kind for kind, *_ in found], np.int32)
    return Instances(boxes, classes, masks, np.array([s for _, s, _ in found], np.float32))


def image(height: int = 160, width: int = 200) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def mixed(colour) -> np.ndarray:
    return np.rint(GREY + OPACITY * (np.float32(colour) - GREY)).astype(np.uint8)


def test_masks_and_boxes_have_the_colours_of_their_classes():
    found = instances((0, 0.9, (10, 60, 90, 150)), (1, 0.8, (100, 60, 190, 150)))
    columns = detection_columns([image()], [found], NAMES, COLOURS)
    factor = SIDE // 160
    assert columns['image'].shape == columns['detections'].shape == (1, 320, 400, 3)
    assert (columns['image'] == GREY).all()
    drawn = columns['detections'][0]
    for kind, (x0, x1) in ((0, (10, 90)), (1, (100, 190))):
        inside = drawn[80 * factor : 140 * factor, (x0 + 5) * factor : (x1 - 5) * factor]
        assert (inside == mixed(COLOURS[kind])).all()
        right = drawn[70 * factor : 140 * factor, x1 * factor - 1]  # x1 does not belong to it
        assert (right == COLOURS[kind]).all()
        assert (drawn[70 * factor : 140 * factor, x1 * factor] == GREY).all()
        bottom = drawn[150 * factor - 1, (x0 + 5) * factor : (x1 - 5) * factor]
        assert (bottom == COLOURS[kind]).all()
    # The name lies above the box, on the colour of the class.
    above = drawn[(60 * factor - 16) : 60 * factor, 10 * factor : 40 * factor]
    assert (above == COLOURS[0]).all(axis=-1).mean() > 0.5
    assert (above == 255).all(axis=-1).any()


def test_the_most_certain_is_on_top():
    first = instances((1, 0.9, (20, 60, 100, 150)), (0, 0.6, (60, 60, 150, 150)))
    drawn = detection_columns([image()], [first], NAMES, COLOURS)['detections'][0]
    low = np.rint(GREY + OPACITY * (np.float32(COLOURS[0]) - GREY))
    both = np.rint(low + OPACITY * (COLOURS[1] - low)).astype(int)
    assert np.abs(drawn[2 * 130, 2 * 80] - both).max() <= 1
    assert (drawn[2 * 100, 2 * 100 - 1] == COLOURS[1]).all()  # its edge, within the other


def test_uncertain_detections_are_not_drawn():
    found = instances((0, 0.49, (10, 60, 90, 150)))
    columns = detection_columns([image()], [found], NAMES, COLOURS)
    assert (columns['detections'] == GREY).all()
    assert detection_columns([image()], [instances()], NAMES, COLOURS)['detections'].any()


def test_images_of_several_sizes_share_a_picture():
    """What is beyond the smaller one is white; names at the border stay in the picture."""
    small = Instances(
        np.float32([[0, 0, 30, 20]]), np.int32([1]), np.ones((1, 20, 30), bool), np.float32([0.9])
    )
    images = [image(), image(20, 30)]
    columns = detection_columns(images, [instances(), small], (), COLOURS)
    assert columns['image'].shape == (2, 320, 480, 3)
    assert (columns['image'][0, :, 400:] == 255).all()
    assert (columns['detections'][1, :2, 100:] == COLOURS[1]).all()
