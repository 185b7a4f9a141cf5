"""Wraps the loader of a run as one of the pipelines that `input_pipeline.py` measures.

mae_jax is imported inside the functions: in the measuring process, after the C decoder has been
disabled if the pipeline measures Pillow alone.
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
    """Makes the pipeline.

    Args:
      setting: images, sizes and cores.
      prepared: the output of `mae-jax prepare` on the images; None reads the original files.
      workers: use a worker process per core.
      pillow_alone: do not use the C module.
      **loading: further arguments of `make_loader`.
    """
    if pillow_alone:
        sys.modules['mae_jax.data.images._jpeg'] = None  # as if it were not built
    from mae_jax.data.loader.batches import make_loader
    from mae_jax.data.loader.order import epochs
    from mae_jax.data.sources.make import make_source
    from mae_jax.data.transforms import views as transforms

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
        """Compares a batch of the loader with crops of the same boxes from the original images."""
        rows = range(setting.compared)
        options = loading | ({'repeats': 1} if 'repeats' in loading else {})
        batch = make(batch_size=len(rows), rows=rows, flip=False, **options).batch_at(0)
        images = batch['image'] if 'image' in batch else _resize_on_cpu(batch, setting.size)
        order = epochs(len(source), SEED)
        differences = []
        for row, pixels in enumerate(images):
            index = order[row]
            reduced, full = (_width_height(s[index]['image']) for s in (source, files))
            if 'canvas' in batch:
                scale = min(1.0, CANVAS / max(reduced))
                reduced = tuple(round(side * scale) for side in reduced)
            rng = np.random.default_rng((SEED, transforms.CROP_AND_FLIP, row // len(source), index))
            box = random_box(*reduced, rng)
            box = tuple(edge * full[i % 2] / reduced[i % 2] for i, edge in enumerate(box))
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
