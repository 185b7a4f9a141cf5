"""Speed of the input pipeline from JPEG files to batches, beside those that others would use.

    python benchmarks/input_pipeline.py --repeats=5

Prints a Markdown table. Without `--path` the images are made: 512 JPEGs of 500 x 375 at quality 92
whose noise of several octaves compresses to the 104 KB that photographs of that size take. The
peers (`input_peers.py`) are measured where their libraries are installed.

Each pipeline has a process of its own at each number of cores, bound to them before anything is
imported: libraries fight over threads, and count the cores as they start. The processes wait until
it is their turn. A turn is timed from the arrival of the batch with which all workers have given
one to that of a batch some seconds later, while the pipeline goes on, so that neither the start
nor the end of workers counts, and reading ahead gains nothing.
"""

import argparse
import contextlib
import functools
import importlib.util
import inspect
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import input_peers
import numpy as np
from input_peers import RATIO, SCALE, Pipeline, Setting, crops_differ, difference, reference
from measure import hardware, others_cpu_share, versions
from photographs import link_photographs, make_photographs
from PIL import Image

SEED, THREADS, CANVAS = 0, 8, 384
ORIGINAL = "the original's: torchvision on Pillow, float32"


class Contender(NamedTuple):
    name: str
    make: Callable[..., Pipeline]
    """Called in a process of its own, with the `Setting` and the options."""
    options: dict = {}
    needs: str = 'mae_jax.data.loader'
    """The module without which it cannot be measured."""


def ours(
    setting: Setting,
    prepared: str | None = None,
    workers: bool = False,
    pillow_alone: bool = False,
    **loading,
) -> Pipeline:
    """The loader of a run.

    Args:
      prepared: what `mae-jax prepare` made of the images; None: the files themselves.
      workers: with a worker process a core.
      pillow_alone: without the C module.
      **loading: further arguments of `make_loader`.
    """
    if pillow_alone:
        sys.modules['mae_jax.data._jpeg'] = None  # as where it is not built
    from mae_jax.data import transforms
    from mae_jax.data.loader import epochs, make_loader
    from mae_jax.data.sources import make_source

    files = make_source('folder', 'train', path=setting.path)
    source = make_source('prepared', 'train', path=prepared) if prepared else files
    make = functools.partial(
        make_loader,
        source,
        seed=SEED,
        image_size=(setting.size, setting.size),
        crop_scale=SCALE,
        crop_ratio=RATIO,
        threads=THREADS,
    )

    def batches() -> Iterator:
        rows = range(setting.batch_size)
        processes = setting.cores if workers else 0
        loader = make(batch_size=len(rows), rows=rows, workers=processes, **loading)
        return loader.iterate(start_step=0)

    def pixel_difference() -> float:
        """Of a batch of the loader, to the same boxes in the original images."""
        rows = range(setting.compared)
        once = loading | ({'repeats': 1} if 'repeats' in loading else {})
        batch = make(batch_size=len(rows), rows=rows, flip=False, **once).batch_at(0)
        images = batch['image'] if 'image' in batch else _resize_on_cpu(batch, setting.size)
        order = epochs(len(source), SEED)
        differences = []
        for row, pixels in enumerate(images):
            index = order[row]
            data = files[index]['image']
            given, full = (_width_height(s[index]['image']) for s in (source, files))
            rng = np.random.default_rng((SEED, transforms.CROP_AND_FLIP, row // len(source), index))
            box = transforms.random_resized_crop_box(*given, rng, SCALE, RATIO)
            box = tuple(edge * full[i % 2] / given[i % 2] for i, edge in enumerate(box))
            differences.append(difference(pixels, reference(data, box, setting.size)))
        return float(np.mean(differences))

    return Pipeline(batches, pixel_difference)


def _resize_on_cpu(batch: dict, size: int) -> np.ndarray:
    import jax

    from mae_jax.tasks.preprocess import crop_and_resize

    with jax.default_device(jax.devices('cpu')[0]):
        return np.asarray(crop_and_resize(batch['canvas'], batch['box'], (size, size)))


def _width_height(data: bytes | np.ndarray) -> tuple[int, int]:
    return data.shape[1::-1] if isinstance(data, np.ndarray) else Image.open(io.BytesIO(data)).size


def contenders(prepared: str | None) -> list[Contender]:
    """All that can be measured here."""
    from mae_jax.data.loader import make_loader

    peers = [
        Contender(ORIGINAL, input_peers.original, {'floats': True}, 'torchvision'),
        Contender('the same, uint8', input_peers.original, {'floats': False}, 'torchvision'),
        Contender('torchvision v2 on tensors', input_peers.tensors, {}, 'torchvision'),
    ] + [
        Contender(f'tf.data, {name}', input_peers.tf_data, options, 'tensorflow')
        for name, options in {
            'fused decode-and-crop': {'antialias': True},
            'the same, accurate DCT': {'antialias': True, 'dct_method': 'INTEGER_ACCURATE'},
            'the same, not antialiased': {'antialias': False},
        }.items()
    ]
    own = [
        Contender('mae_jax, exact', ours),
        Contender('the same, Pillow alone', ours, {'pillow_alone': True}),
        Contender('the same, worker processes', ours, {'workers': True}),
    ]
    fields = inspect.signature(make_loader).parameters
    if prepared:
        own.append(Contender('mae_jax, prepared', ours, {'prepared': prepared}))
        if 'repeats' in fields:
            options = {'prepared': prepared, 'repeats': 4}
            own.append(Contender('the same, repeats=4', ours, options))
            if 'resize' in fields:
                options = options | {'resize': 'device', 'canvas': CANVAS}
                own.append(Contender("the same, resize='device'", ours, options))
    return [c for c in peers + own if importlib.util.find_spec(c.needs)]


def rate(pipeline: Pipeline, setting: Setting, seconds: float) -> float:
    """Images a second, over at least so many seconds of a stream that has started."""
    with contextlib.closing(pipeline.batches()) as batches:
        for _ in range(max(2, setting.cores)):
            next(batches)
        start, count, elapsed = time.perf_counter(), 0, 0.0
        while elapsed < seconds:
            for _ in range(setting.cores):  # the same number from each worker
                next(batches)
            count += setting.cores
            elapsed = time.perf_counter() - start
    return count * setting.batch_size / elapsed


def serve(connection, contender: Contender, setting: Setting) -> None:
    """The life of a measuring process: a rate for each number of seconds, the difference at 0."""
    pipeline = contender.make(setting, **contender.options)
    while (seconds := connection.recv()) is not None:
        connection.send(rate(pipeline, setting, seconds) if seconds else pipeline.difference())


@contextlib.contextmanager
def measuring(contender: Contender, setting: Setting) -> Iterator[Callable[[float], float]]:
    """`serve` in a process that has so many cores; it answers to numbers of seconds."""
    context = multiprocessing.get_context('spawn')
    connection, end = context.Pipe()
    process = context.Process(target=serve, args=(end, contender, setting))
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[: setting.cores])  # a new process inherits it
    try:
        process.start()
    finally:
        os.sched_setaffinity(0, all_cores)
    end.close()

    def ask(seconds: float) -> float:
        connection.send(seconds)
        return connection.recv()

    try:
        yield ask
        connection.send(None)
    finally:
        connection.close()
        process.join()


class Measured(NamedTuple):
    name: str
    rates: np.ndarray
    """Images a second, [number of cores, repeats]."""
    difference: float


def measure(
    pipelines: Sequence[Contender],
    setting: Setting,
    cores: Sequence[int],
    repeats: int,
    seconds: float,
) -> list[Measured]:
    """All in turn, after one turn unmeasured; `setting.cores` is replaced by each of `cores`."""
    with contextlib.ExitStack() as stack:
        ask = [
            [stack.enter_context(measuring(p, setting._replace(cores=n))) for n in cores]
            for p in pipelines
        ]
        differences = []
        for pipeline, processes in zip(pipelines, ask, strict=True):
            print(f'starting: {pipeline.name}', file=sys.stderr)
            differences.append(processes[0](0))
            for process in processes:
                process(seconds / 4)
        rates = np.empty((len(pipelines), len(cores), repeats))
        for repeat in range(repeats):
            print(f'repeat {repeat + 1} of {repeats}', file=sys.stderr)
            for index in np.ndindex(rates.shape[:2]):
                rates[*index, repeat] = ask[index[0]][index[1]](seconds)
    names = [p.name for p in pipelines]
    return [Measured(*row) for row in zip(names, rates, differences, strict=True)]


def table(measured: Sequence[Measured], cores: Sequence[int]) -> str:
    """Ratios are of medians, and to the original's pipeline where it was measured."""
    originals = [np.median(m.rates[0]) for m in measured if m.name == ORIGINAL]
    several = [f'{n} cores | {n} over {cores[0]}' for n in cores[1:]]
    header = [f'images/s, {cores[0]} core' + 's' * (cores[0] > 1), 'slowest - fastest', *several]
    header = ['pipeline', *header, "over the original's", 'pixel difference']
    lines = [f'| {" | ".join(header)} |', '|---' * (len(header) + len(several)) + '|']
    for name, rates, pixels in measured:
        medians = np.median(rates, axis=1)
        cells = [name, f'{medians[0]:.0f}', f'{rates[0].min():.0f} - {rates[0].max():.0f}']
        for median in medians[1:]:
            cells += [f'{median:.0f}', f'{median / medians[0]:.2f}']
        cells += [f'{medians[0] / originals[0]:.2f}' if originals else '', f'{pixels:.3f}']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def prepare(path: Path, folder: Path) -> str | None:
    """What `mae-jax prepare` makes of the images; None where there is no such command."""
    if not importlib.util.find_spec('mae_jax.commands.prepare'):
        return None
    command = [sys.executable, '-m', 'mae_jax', 'prepare', str(path), str(folder)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return str(folder)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--path', type=Path, help='of train/<class>/*.jpg; unset: images are made')
    parser.add_argument('--examples', type=int, default=512, help='images that are made, or taken')
    parser.add_argument('--width', type=int, default=500, help='of the images that are made')
    parser.add_argument('--height', type=int, default=375)
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--cores', type=int, nargs='*', default=[1, 2])
    parser.add_argument('--seconds', type=float, default=4.0, help='of each measurement')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--compared', type=int, default=64, help='images whose pixels are compared')
    parser.add_argument('--only', nargs='*', help='the names of pipelines in the table')
    args = parser.parse_args(argv)

    cores = [n for n in args.cores if n <= len(os.sched_getaffinity(0))]
    with tempfile.TemporaryDirectory(prefix='mae_jax_input_') as folder:
        images = Path(folder, 'images')
        if args.path:
            link_photographs(args.path, images, args.examples)
        else:
            make_photographs(images, args.examples, args.width, args.height)
        pipelines = contenders(prepare(images, Path(folder, 'prepared')))
        pipelines = [p for p in pipelines if args.only is None or p.name in args.only]
        setting = Setting(str(images), args.image_size, args.batch_size, cores[0], args.compared)
        others = others_cpu_share()
        measured = measure(pipelines, setting, cores, args.repeats, args.seconds)
        kilobytes = np.mean([file.stat().st_size for file in images.glob('*/*/*')]) / 1e3
    print(f'JPEG to batches of {args.batch_size} x {args.image_size} px\n')
    print(f'- {hardware()}\n- {versions()}')
    print(f'- {args.examples} images of {kilobytes:.0f} KB; medians of {args.repeats} repeats\n')
    print(table(measured, cores))


if __name__ == '__main__':
    main()
