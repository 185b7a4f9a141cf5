"""Masks that a user has painted over images, as the patches that they hide."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from mae_jax.data.images.arrays import upright
from mae_jax.data.images.decode import decode
from mae_jax.data.images.pictures import read_picture
from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.transforms.crops import center_crop_place, width_height
from mae_jax.errors import UserError
from mae_jax.models.patches import grid_size

Path = str | os.PathLike


def hidden_patches(
    masks: Sequence[Path],
    images: Sequence[Path],
    patch_size: int,
    *,
    image_size: tuple[int, int],
    crop_share: float | None = None,
    apply_exif: bool = False,
    **decoding: Any,
) -> Bool[np.ndarray, 'B N']:
    """Reads which patches of images are painted over, where the model sees them.

    A mask is resized and cropped as its image is. A patch is hidden if anything in it is painted.

    Args:
      masks: an image file for each image, of the same size in pixels; or one for all.
      images: image files.
      patch_size: side in pixels, of images as the model sees them.
      image_size, crop_share, apply_exif, **decoding: of `eval_transform`.

    Raises:
      UserError: a mask has another size than its image, hides nothing or everything of it, or
        cannot be read; the message names it.
    """
    if len(masks) not in (1, len(images)):
        raise UserError(
            f'--mask names {len(masks)} files for {len(images)} images: name one for each image, '
            'or one for all.'
        )
    painted = {mask: read_painted(mask, apply_exif) for mask in dict.fromkeys(masks)}
    hidden = []
    for mask, image in zip(itertools.cycle(masks), images, strict=False):
        record = _read(image)
        picture = decode(record, apply_exif=apply_exif, lazily=True, **decoding)
        size, drawn = width_height(picture), painted[mask].shape[::-1]
        if size != drawn:
            raise UserError(
                f'the mask {mask} has {drawn[0]} x {drawn[1]} pixels, and its image {image} has '
                f'{size[0]} x {size[1]}: paint it over the image, at its size.'
            )
        place = center_crop_place(*size, image_size, crop_share)
        hidden.append(_cut(painted[mask], *place, grid_size(image_size, patch_size), patch_size))
        _check(hidden[-1], mask, image)
    return np.stack(hidden)


def read_painted(path: Path, apply_exif: bool = False) -> Bool[np.ndarray, 'H W']:
    """Reads where a mask is painted.

    In a picture with transparent pixels all others are painted, whatever their colour; in any other
    picture those that are not black (not 0).

    Raises:
      UserError: the file cannot be read as an image.
    """
    data = _read(path)['image']
    try:
        picture, orientation = read_picture(data, None, apply_exif)
        if isinstance(picture, np.ndarray):  # more than 8 bits
            painted = picture.reshape(*picture.shape[:2], -1).any(axis=-1)
        else:
            pixels = np.asarray(picture.convert('RGBA'))
            clear = pixels[..., 3] == 0
            painted = ~clear if clear.any() else pixels[..., :3].any(axis=-1)
    except Exception as error:  # decoders meet broken files with every kind of exception
        raise UserError(
            f'the mask {path} cannot be read as an image ({type(error).__name__}): save it as PNG.'
        ) from error
    return upright(painted[..., None], orientation)[..., 0]


def _cut(
    painted: Bool[np.ndarray, 'H W'],
    resized: tuple[int, int],
    corner: tuple[int, int],
    grid: tuple[int, int],
    patch_size: int,
) -> Bool[np.ndarray, ' N']:
    """Returns whether anything is painted in each patch of a crop of the resized image."""
    spans = []
    for whole, side, first, count in zip(painted.shape, resized, corner, grid, strict=True):
        ends = [(first + i * patch_size) * whole for i in range(count + 1)]
        spans.append([(a // side, -(-b // side)) for a, b in itertools.pairwise(ends)])
    rows, columns = spans
    return np.array([painted[a:b, c:d].any() for a, b in rows for c, d in columns])


def _check(hidden: Bool[np.ndarray, ' N'], mask: Path, image: Path) -> None:
    if not hidden.any():
        raise UserError(
            f'the mask {mask} hides nothing of {image} as the model sees it, resized and cropped '
            'in the centre: paint in any colour but black, or on a transparent layer.'
        )
    if hidden.all():
        raise UserError(
            f'the mask {mask} hides all of {image}: leave what stays visible black, or transparent.'
        )


def _read(path: Path) -> dict[str, Any]:
    return FolderSource('', [os.fspath(path)], None, [])[0]
