"""Images to patches and back: the only place that knows their order.

Patches are row-major over the grid; the vector of a patch is (row in patch, column in patch,
channel). Images are channels-last.
"""

from jaxtyping import ArrayLike, Shaped

from mae_jax.errors import UserError


def grid_size(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Returns the rows and columns of patches in an image of (height, width).

    Raises:
      UserError: the patch does not divide both sides.
    """
    height, width = image_size
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise UserError(
            f'image_size=({height}, {width}) cannot be cut into patches of {patch_size} x '
            f'{patch_size} pixels: choose an image_size whose sides model.patch_size divides.'
        )
    return height // patch_size, width // patch_size


def patchify(
    images: Shaped[ArrayLike, 'B H W C'], patch_size: int
) -> Shaped[ArrayLike, 'B N {patch_size}**2*C']:
    """Cuts images into patches; the dtype, and NumPy or JAX, stay."""
    batch, height, width, channels = images.shape
    rows, columns = grid_size((height, width), patch_size)
    cells = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return cells.swapaxes(2, 3).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(
    patches: Shaped[ArrayLike, 'B N V'], patch_size: int, image_size: tuple[int, int]
) -> Shaped[ArrayLike, 'B {image_size[0]} {image_size[1]} C']:
    """Puts patches together to images of (height, width): the inverse of `patchify`."""
    rows, columns = grid_size(image_size, patch_size)
    cells = patches.reshape(patches.shape[0], rows, columns, patch_size, patch_size, -1)
    return cells.swapaxes(2, 3).reshape(patches.shape[0], *image_size, -1)
