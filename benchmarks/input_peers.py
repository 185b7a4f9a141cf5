"""Input pipelines of other libraries, for comparison in `input_pipeline.py`.

Each uses the public interface of its library, which is imported in a process of its own.
"""

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
ENDLESS = 10**9  # examples
CropBox = tuple[float, float, float, float]
"""(left, top, width, height)"""


class Setting(NamedTuple):
    """The images and the number of cores, the same for every pipeline."""

    path: str
    """The folder of the images, `train/<class>/*.jpg`."""
    size: int
    """Height and width of a crop, in pixels."""
    batch_size: int
    cores: int
    compared: int
    """The number of images on which the pixel difference is measured."""


class Pipeline(NamedTuple):
    """An input pipeline."""

    batches: Callable[[], Iterator]
    """Starts shuffled, augmented batches without end; the caller closes the iterator."""
    difference: Callable[[], float]
    """Returns the mean absolute difference of its pixels from `reference`, in grey levels."""


def reference(data: bytes, box: CropBox, size: int) -> np.ndarray:
    """Crops, then resizes with Pillow's antialiased bicubic, to uint8 [size, size, 3].

    A box with edges between pixels (that of a reduced image, scaled to the original) is resized
    from the whole image, so that one or two pixels from outside influence its border.
    """
    left, top, width, height = box
    edges = left, top, left + width, top + height
    image = Image.open(io.BytesIO(data)).convert('RGB')
    if all(float(edge).is_integer() for edge in edges):
        image, edges = image.crop(edges), None
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, edges))


def difference(pixels: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(pixels, np.float64) - expected).mean())


def random_box(width: int, height: int, rng: np.random.Generator) -> CropBox:
    """Draws a crop as training does."""
    from mae_jax.data.transforms.crops import random_resized_crop_box

    return random_resized_crop_box(width, height, rng, SCALE, RATIO)


def crops_differ(setting: Setting, crop: Callable[[bytes, CropBox], np.ndarray]) -> float:
    """Returns the mean `difference` of `crop(data, box)` [H, W, 3] for random training crops."""
    from mae_jax.data.sources.make import make_source

    source = make_source('folder', 'train', path=setting.path)
    rng = np.random.default_rng(0)
    differences = []
    for index in np.linspace(0, len(source) - 1, setting.compared).astype(int):
        data = source[index]['image']
        box = random_box(*Image.open(io.BytesIO(data)).size, rng)
        differences.append(difference(crop(data, box), reference(data, box, setting.size)))
    return float(np.mean(differences))


def original(setting: Setting, floats: bool) -> Pipeline:
    """Makes He et al.'s pipeline: torchvision on Pillow images, uint8 or normalised floats."""
    from torchvision import transforms as T
    from torchvision.transforms import functional as F

    bicubic = T.InterpolationMode.BICUBIC
    last = [T.ToTensor(), T.Normalize(MEAN, STD)] if floats else [T.PILToTensor()]
    random = [T.RandomResizedCrop(setting.size, SCALE, interpolation=bicubic)]
    transform = T.Compose([*random, T.RandomHorizontalFlip(), *last])

    def crop(data: bytes, box: CropBox) -> np.ndarray:
        left, top, width, height = box
        image = Image.open(io.BytesIO(data)).convert('RGB')
        image = F.resized_crop(image, top, left, height, width, [setting.size] * 2, bicubic)
        pixels = T.Compose(last)(image).permute(1, 2, 0).numpy()
        return (pixels * STD + MEAN) * 255 if floats else pixels

    return Pipeline(lambda: _data_loader(setting, transform), lambda: crops_differ(setting, crop))


def tensors(setting: Setting) -> Pipeline:
    """Makes a pipeline of torchvision's decoder and its transforms v2 on uint8 tensors."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    bicubic = v2.InterpolationMode.BICUBIC
    random = v2.RandomResizedCrop(setting.size, SCALE, interpolation=bicubic, antialias=True)
    transform = v2.Compose([random, v2.RandomHorizontalFlip()])

    def read(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    def crop(data: bytes, box: CropBox) -> np.ndarray:
        left, top, width, height = box
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        image = v2.functional.resized_crop(
            image, top, left, height, width, [setting.size] * 2, bicubic, antialias=True
        )
        return image.permute(1, 2, 0).numpy()

    return Pipeline(
        lambda: _data_loader(setting, transform, loader=read), lambda: crops_differ(setting, crop)
    )


def _data_loader(setting: Setting, transform: Callable, **folder) -> Iterator:
    """Yields the batches of torch's DataLoader with a worker process for each core."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(f'{setting.path}/train', transform, **folder)
    yield from DataLoader(
        dataset,
        batch_size=setting.batch_size,
        sampler=RandomSampler(dataset, num_samples=ENDLESS),
        num_workers=setting.cores,
        multiprocessing_context='fork',  # the default on Linux, unless the process was spawned
    )


def tf_data(setting: Setting, antialias: bool = True, dct_method: str = '') -> Pipeline:
    """Makes a pipeline of tf.data that decodes the crop alone, to uint8 batches.

    Args:
      setting: the images and their number.
      antialias: of the resize.
      dct_method: of the JPEG decoder; the default is the fast and less exact one.
    """
    import tensorflow as tf

    def resize(data: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method=dct_method)
        size = [setting.size] * 2
        image = tf.image.resize(image, size, tf.image.ResizeMethod.BICUBIC, antialias=antialias)
        return tf.saturate_cast(tf.round(image), tf.uint8)

    def load(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            bounding_boxes=tf.zeros([1, 0, 4]),
            aspect_ratio_range=RATIO,
            area_range=SCALE,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = resize(data, tf.concat([begin[:2], size[:2]], axis=0))
        return tf.image.random_flip_left_right(image), label

    def batches() -> Iterator:
        from mae_jax.data.sources.make import make_source

        source = make_source('folder', 'train', path=setting.path)
        files = [f'{source.root}/{name}' for name in source.files]
        dataset = tf.data.Dataset.from_tensor_slices((files, source.labels))
        dataset = dataset.shuffle(len(files)).repeat().map(load, tf.data.AUTOTUNE)
        yield from dataset.batch(setting.batch_size).prefetch(tf.data.AUTOTUNE)

    def crop(data: bytes, box: CropBox) -> np.ndarray:
        left, top, width, height = box
        return resize(data, [top, left, height, width]).numpy()

    return Pipeline(batches, lambda: crops_differ(setting, crop))
