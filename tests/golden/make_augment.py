"""Makes augment.npz with timm's Mixup and RandomErasing.

    python tests/golden/make_augment.py

Needs torch and timm (made with timm 1.0.31). Two kinds of numbers: batches with the parameters that
timm drew for them, and how those parameters are distributed over many draws.
"""

import random
from pathlib import Path

import numpy as np
import torch
from timm.data import mixup as timm_mixup
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

HERE = Path(__file__).parent
SIZE = (24, 20)  # not square, so that height and width cannot be swapped
DRAWS = 20_000
CLASSES = 7
BINS = 37  # of lambda: coprime to the pixels' number, so that no share lies on an edge


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).clone()


def to_numpy(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


class Recorder:
    """A Mixup that keeps what it drew last: lambda before and after correction, centre and box."""

    def __init__(self, **kwargs):
        self.mixup = Mixup(**kwargs)
        self._params = self.mixup._params_per_batch
        self._box = timm_mixup.rand_bbox
        self._randint = np.random.randint

    def __call__(self, images: torch.Tensor, labels: torch.Tensor):
        self.center, self.box = [], (0, 0, 0, 0)

        def params():
            self.drawn, self.is_cutmix = self._params()
            return self.drawn, self.is_cutmix

        def box(*args, **kwargs):
            self.box = self._box(*args, **kwargs)
            return self.box

        def randint(*args, **kwargs):
            self.center.append(self._randint(*args, **kwargs))
            return self.center[-1]

        self.mixup._params_per_batch = params
        timm_mixup.rand_bbox, np.random.randint = box, randint
        try:
            images, targets = self.mixup(images, labels)
        finally:
            timm_mixup.rand_bbox, np.random.randint = self._box, self._randint
        height, width = images.shape[-2:]
        top, bottom, left, right = self.box
        area = (bottom - top) * (right - left)
        self.lam = 1 - area / (height * width) if self.is_cutmix else self.drawn
        return images, targets


def mixed_batches() -> dict[str, np.ndarray]:
    """Groups of eight rows, mixed one after the other: by mixup, by CutMix (clipped or not)."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(32, 12, 10, 3)).astype(np.float32)
    labels = rng.integers(CLASSES, size=32)
    recorder = Recorder(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=CLASSES)
    np.random.seed(3)
    golden = {name: [] for name in ('images', 'targets', 'lam', 'box')}
    for i in range(0, 32, 8):
        mixed, targets = recorder(to_torch(images[i : i + 8]), torch.from_numpy(labels[i : i + 8]))
        golden['images'].append(to_numpy(mixed))
        golden['targets'].append(targets.numpy())
        golden['lam'].append(recorder.lam)
        golden['box'].append(recorder.box)
    return {
        'mix/input': images,
        'mix/labels': labels,
        'mix/images': np.concatenate(golden['images']),
        'mix/targets': np.concatenate(golden['targets']),
        'mix/lam': np.array(golden['lam']),
        'mix/box': np.array(golden['box']),
    }


def mix_distribution(mixup: float, cutmix: float) -> dict[str, np.ndarray]:
    """Histograms of lambda by kind, and of the CutMix box's edges, height, width and area."""
    recorder = Recorder(mixup_alpha=mixup, cutmix_alpha=cutmix, num_classes=2)
    images, labels = torch.zeros(2, 1, *SIZE), torch.zeros(2, dtype=torch.int64)
    np.random.seed(0)
    lam, is_cutmix, boxes = [], [], []
    for _ in range(DRAWS):
        recorder(images, labels)
        lam.append(recorder.lam)
        is_cutmix.append(recorder.is_cutmix)
        boxes.append(recorder.box)
    lam, is_cutmix, boxes = np.array(lam), np.array(is_cutmix), np.array(boxes)
    is_box = (boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2])  # else nothing is cut
    return {
        'mixup_lam': np.histogram(lam[~is_cutmix], BINS, (0, 1))[0],
        'cutmix_lam': np.histogram(lam[is_box], BINS, (0, 1))[0],
    } | box_histograms(boxes[is_box])


def box_histograms(boxes: np.ndarray) -> dict[str, np.ndarray]:
    top, bottom, left, right = boxes.T
    height, width = bottom - top, right - left
    counted = {'top': top, 'bottom': bottom, 'left': left, 'right': right}
    counted |= {'height': height, 'width': width, 'area': height * width}
    return {name: np.bincount(values) for name, values in counted.items()}


def cutmix_boxes() -> dict[str, np.ndarray]:
    """Boxes of given lambda and centre, at the resolution of the paper."""
    recorder = Recorder(mixup_alpha=0.0, cutmix_alpha=1.0, num_classes=2)
    images, labels = torch.zeros(2, 1, 224, 160), torch.zeros(2, dtype=torch.int64)
    np.random.seed(1)
    golden = {name: [] for name in ('drawn', 'center', 'box')}
    for _ in range(300):
        recorder(images, labels)
        for name, values in golden.items():
            values.append(getattr(recorder, name))
    return {f'cutmix_boxes/{name}': np.array(values) for name, values in golden.items()}


def erased_batch() -> dict[str, np.ndarray]:
    images = np.random.default_rng(1).normal(size=(12, 12, 10, 3)).astype(np.float32)
    random.seed(0)
    torch.manual_seed(0)
    erased = to_torch(images)
    RandomErasing(0.75, mode='pixel', device='cpu')(erased)
    erased = to_numpy(erased)
    boxes = [erased_box(change) for change in (erased != images).any(axis=-1)]
    return {'erase/input': images, 'erase/images': erased, 'erase/box': np.array(boxes)}


def erased_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The rectangle of the pixels that are True; all 0 where none is."""
    if not mask.any():
        return 0, 0, 0, 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert mask.sum() == (box[1] - box[0]) * (box[3] - box[2])
    return box


def erasing_distribution(probability: float, **areas: float) -> dict[str, np.ndarray]:
    """Histograms of the boxes of those images that were erased; their sum is how many."""
    erasing = RandomErasing(probability, mode='pixel', device='cpu', **areas)
    random.seed(0)
    torch.manual_seed(0)
    images = erasing(torch.zeros(DRAWS, 1, *SIZE)).numpy()[:, 0]
    boxes = np.array([erased_box(mask) for mask in images != 0])
    return box_histograms(boxes[boxes[:, 1] > 0])


def main() -> None:
    distributions = {
        'mix_both': mix_distribution(0.8, 1.0),
        'mix_mixup': mix_distribution(0.8, 0.0),
        'mix_cutmix': mix_distribution(0.0, 1.0),
        'erasing_always': erasing_distribution(1.0),
        'erasing_quarter': erasing_distribution(0.25),
        # Most attempts do not fit: how many there are shows in the share of images erased.
        'erasing_tight': erasing_distribution(1.0, min_area=0.8, max_area=0.95),
    }
    golden = mixed_batches() | cutmix_boxes() | erased_batch()
    for part, histograms in distributions.items():
        golden |= {f'{part}/{name}': counts for name, counts in histograms.items()}
    golden = {
        name: values.astype(np.float32 if values.dtype.kind == 'f' else np.int32)
        for name, values in golden.items()
    }
    np.savez_compressed(HERE / 'augment.npz', **golden)


if __name__ == '__main__':
    main()
