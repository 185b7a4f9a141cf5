"""Segmentations in the colours of their classes, by hand."""

import numpy as np

from mae_jax.visualization.segmentation import segmentation_columns

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
WHITE = (255, 255, 255)


def test_each_pixel_has_the_colour_of_its_class_and_what_has_none_is_white():
    """Two images of different sizes; the mask of the second is twice as large as it."""
    images = np.zeros((2, 4, 5, 3))
    images[:, ..., 0] = 1.0
    predicted = np.tile(np.arange(5) % 3, (2, 4, 1))
    masks = np.full((2, 8, 6), 255, np.uint8)
    masks[0, :2, :3] = [[0, 1, 2], [255, 1, 0]]
    masks[1, :8, :4] = np.kron([[2, 0], [1, 2], [0, 255], [0, 1]], np.ones((2, 2), int))
    size, mask_size = np.array([[2, 3], [4, 2]]), np.array([[2, 3], [8, 4]])
    columns = segmentation_columns(
        images, predicted, size, COLOURS, mean=(0, 0, 0), std=(1, 1, 1), truth=(masks, mask_size)
    )
    assert list(columns) == ['image', 'truth', 'prediction']
    red, green, blue = COLOURS
    expected = {
        'image': [
            [[red] * 3, [red] * 3, [WHITE] * 3, [WHITE] * 3],
            [[red, red, WHITE]] * 4,
        ],
        'truth': [
            [[red, green, blue], [WHITE, green, red], [WHITE] * 3, [WHITE] * 3],
            [[blue, red, WHITE], [green, blue, WHITE], [red, WHITE, WHITE], [red, green, WHITE]],
        ],
        'prediction': [
            [[red, green, blue]] * 2 + [[WHITE] * 3] * 2,
            [[red, green, WHITE]] * 4,
        ],
    }
    for title, pixels in expected.items():
        np.testing.assert_array_equal(columns[title], pixels, err_msg=title)


def test_without_truth_there_are_two_columns():
    columns = segmentation_columns(
        np.zeros((1, 2, 2, 1)),
        np.ones((1, 2, 2), int),
        np.array([[2, 2]]),
        COLOURS,
        mean=(0,),
        std=(1,),
    )
    assert list(columns) == ['image', 'prediction']
    assert (columns['prediction'] == COLOURS[1]).all()
