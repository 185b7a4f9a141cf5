"""Measures what the input costs beside decoding: from decoded images to batches on the devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/input_assembly.py
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/input_assembly.py \
        --workers=64 --sleep_ms=5

The source hands out decoded images of the final size, after `--sleep_ms` of doing nothing in the
place of decoding, and nothing is cropped. What remains is the order of the examples, labels,
copies, messages between processes, and the transfer to the devices, over which a batch is split.

Prints a Markdown table: microseconds of processor time for each image, in the process that trains
and in the worker processes, and images/s. Processor time depends little on what else the machine
does; images/s do. Both are taken of a running stream, from batch to batch.
"""

import argparse
import contextlib
import dataclasses
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from measure import circumstances, markdown, others_cpu_share

from mae_jax.data.loader.batches import make_loader
from mae_jax.data.transforms import views
from mae_jax.training import sharding

EXAMPLES = 1_281_167
"""As many as ImageNet has: grain's shuffle takes longer with few."""
DIFFERENT = 256
"""Images that differ; as many do not fit into the processor's caches."""


@dataclasses.dataclass
class Decoded:
    """A source of images that need no decoding.

    Attributes:
      images: uint8 [n, H, W, 3], repeated.
      sleep_s: seconds that reading one takes.
    """

    images: np.ndarray
    sleep_s: float

    num_classes, class_names, identity = 1000, (), 'decoded'

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict:
        if self.sleep_s:
            time.sleep(self.sleep_s)
        return {'image': self.images[index % len(self.images)], 'label': index % 1000, 'name': ''}


def uncropped(record: dict, **fields) -> dict[str, np.ndarray]:
    """Returns the image of an example as it is, in the place of `views.train_views`."""
    return {'image': record['image'][None]}


def processor_seconds(pids: Sequence[int]) -> np.ndarray:
    """Returns the processor time of this process, and of others together."""
    ticks = [Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split() for pid in pids]
    others = sum(int(fields[11]) + int(fields[12]) for fields in ticks)
    return np.array([time.process_time(), others / os.sysconf('SC_CLK_TCK')])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch_size', type=int, default=4096)
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--workers', type=int, nargs='*', default=[0, 2])
    parser.add_argument('--threads', type=int, default=None, help='of each process')
    parser.add_argument('--sleep_ms', type=float, default=0.0, help='in the place of decoding')
    parser.add_argument('--batches', type=int, default=2, help='of one measurement')
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args(argv)

    shape = (DIFFERENT, args.image_size, args.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    source = Decoded(images, args.sleep_ms / 1000)
    mesh = sharding.make_mesh()
    rows = sharding.local_rows(mesh, args.batch_size)
    others = others_cpu_share()
    lines = []
    for workers in args.workers:
        with mock.patch.object(views, 'train_views', uncropped):
            loader = make_loader(
                source,
                batch_size=args.batch_size,
                rows=rows,
                seed=0,
                image_size=shape[1:3],
                workers=workers,
                threads=args.threads,
                timeout_s=3600.0,
            )
        seconds = np.empty((args.repeats, 3))
        with contextlib.closing(loader.iterate(0, put=sharding.Devices(mesh))) as batches:
            for _ in range(3):  # what was loaded ahead during the start
                jax.block_until_ready(next(batches))
            for repeat in range(args.repeats):
                before = *processor_seconds(batches.worker_pids()), time.perf_counter()
                for _ in range(args.batches):
                    jax.block_until_ready(next(batches))
                after = *processor_seconds(batches.worker_pids()), time.perf_counter()
                seconds[repeat] = np.subtract(after, before)
        each = seconds / (args.batches * args.batch_size)
        train, load = np.median(each[:, :2], axis=0) * 1e6
        spread = f'{each[:, 0].min() * 1e6:.0f} - {each[:, 0].max() * 1e6:.0f}'
        rate = 1 / np.median(each[:, 2])
        lines.append((str(workers), f'{train:.0f}', spread, f'{load:.0f}', f'{rate:.0f}'))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    notes = [
        *circumstances(args.repeats, others()),
        f'batches of {args.batch_size} x {args.image_size} px over {mesh.size} devices, '
        f'{args.sleep_ms:g} ms of sleep for each image',
        f'at most {peak:.1f} GiB in the process that trains',
    ]
    head = ('workers', 'us/image, training process', 'least - most', 'us/image, workers')
    print(markdown(notes, (*head, 'images/s'), lines))


if __name__ == '__main__':
    main()
