"""The loader of mae_jax as one of the pipelines that `input_pipeline.py` measures.

mae_jax is imported inside the functions, in the measuring process, after `ours` has decided whether
the C module may be used.
"""

import functools
import io
import sys
from collections.abc import Iterator

import numpy as np
from input_peers import RATIO, SCALE, Pipeline, Setting, difference, random_box, reference
from PIL import Image

SEED, CANVAS = 0, 384


def ours(
    setting: Setting,
    prepared: str | None = None,
    workers: bool = False,
    pillow_alone: bool = False,
    **loading,
) -> Pipeline:
    """Makes a pipeline of the loader that a run uses.

    Args:
      setting: the images and their number.
      prepared: the directory that `mae-jax prepare` wrote; None to read the image files.
      workers: whether to use a worker process for each core.
      pillow_alone: whether to do without the C module.
      **loading: further arguments of `make_loader`.
    """
    if pillow_alone:
        sys.modules['mae_jax.data.images._jpeg'] = None  # the import fails as if it were not built
    from mae_jax.data.loader.batches import make_loader
    from mae_jax.data.loader.order import epochs
    from mae_jax.data.sources.make import make_source
    from mae_jax.data.transforms import views

    files = make_source('folder', 'train', path=setting.path)
    source = make_source('prepared', 'train', path=prepared) if prepared else files
    make = functools.partial(
        make_loader,
        source,
        seed=SEED,
        image_size=(setting.size, setting.size),
        crop_scale=SCALE,
        crop_ratio=RATIO,
    )

    def batches() -> Iterator:
        rows = range(setting.batch_size)
        processes = setting.cores if workers else 0
        loader = make(batch_size=len(rows), rows=rows, workers=processes, **loading)
        return loader.iterate(start_step=0)

    def pixel_difference() -> float:
        """Compares a batch of the loader with the same crops of the original images."""
        rows = range(setting.compared)
        once = loading | ({'repeats': 1} if 'repeats' in loading else {})
        batch = make(batch_size=len(rows), rows=rows, flip=False, **once).batch_at(0)
        images = batch['image'] if 'image' in batch else _resize_on_cpu(batch, setting.size)
        order = epochs(len(source), SEED)
        differences = []
        for row, pixels in enumerate(images):
            index = order[row]
            size, full = (_width_height(s[index]['image']) for s in (source, files))
            if 'canvas' in batch:
                share = min(1.0, CANVAS / max(size))
                size = tuple(round(side * share) for side in size)
            rng = np.random.default_rng((SEED, views.CROP_AND_FLIP, row // len(source), index))
            box = random_box(*size, rng)
            box = tuple(edge * full[i % 2] / size[i % 2] for i, edge in enumerate(box))
            expected = reference(files[index]['image'], box, setting.size)
            differences.append(difference(pixels, expected))
        return float(np.mean(differences))

    return Pipeline(batches, pixel_difference)


def _resize_on_cpu(batch: dict, size: int) -> np.ndarray:
    import jax

    from mae_jax.tasks.preprocess import crop_and_resize

    with jax.default_device(jax.devices('cpu')[0]):
        resize = jax.jit(functools.partial(crop_and_resize, size=(size, size)))
        return np.asarray(resize(batch['canvas'], batch['box']))


def _width_height(data: bytes | np.ndarray) -> tuple[int, int]:
    return data.shape[1::-1] if isinstance(data, np.ndarray) else Image.open(io.BytesIO(data)).size
