"""Photographs, written to a folder."""

import pytest
from helpers.images import smooth_picture


@pytest.fixture
def photo_folder(tmp_path):
    """A function that writes `count` JPEGs of assorted sizes to a flat folder."""

    def write(count: int, name: str = 'photos'):
        root = tmp_path / name
        root.mkdir()
        for i in range(count):
            picture = smooth_picture(i, 40 + 3 * (i % 7), 30 + 5 * (i % 5))
            picture.save(root / f'{i:04d}.jpg', quality=90)
        return root

    return write
