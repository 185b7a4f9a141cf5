"""Measures the input pipeline from JPEG files to batches, beside those of other libraries.

    python benchmarks/input_pipeline.py --repeats=5

Prints a Markdown table. Without `--path` it generates the images: JPEGs of 500 x 375 pixels whose
noise of several octaves takes 104 KB, as photographs of that size do. Peers are measured if their
libraries are installed (`input_peers.py`); 'original' is He et al.'s: torchvision's transforms on
Pillow images, in torch's DataLoader, to normalised floats.

Each pipeline has a process of its own at each number of cores, bound to them when it starts,
because libraries compete for threads and count the cores when they are imported. The processes take
turns. Images/s are those of a running stream: the clock starts and stops when a batch arrives,
after every worker has given one, so that neither the start nor the end of workers counts, and
reading ahead gains nothing. Batches stay on the host: the work that `resize='device'` leaves to the
accelerator is not included.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
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
from input_ours import CANVAS, ours
from input_peers import Pipeline, Setting
from photographs import link_photographs, make_photographs

OURS = 'mae_jax.data.loader.batches'
ORIGINAL = 'original'


class Contender(NamedTuple):
    name: str
    make: Callable[..., Pipeline]
    """Called in a process of its own with the `Setting` and the options."""
    options: dict = {}
    needs: str = OURS
    """The module that must be installed."""


class NotMeasured(Exception):
    """A peer that fails on this machine; the message has the reason."""


def contenders(prepared: str) -> list[Contender]:
    """Returns all pipelines that can be measured; each of the last ones adds an option."""
    pipelines = [
        Contender(ORIGINAL, input_peers.original, {'floats': True}, 'torchvision'),
        Contender(f'{ORIGINAL}, uint8', input_peers.original, {'floats': False}, 'torchvision'),
        Contender('torchvision v2', input_peers.tensors, {}, 'torchvision'),
    ]
    for detail, options in {
        '': {},
        ', accurate DCT': {'dct_method': 'INTEGER_ACCURATE'},
        ', not antialiased': {'antialias': False},
    }.items():
        pipelines.append(Contender(f'tf.data{detail}', input_peers.tf_data, options, 'tensorflow'))
    for detail, options in {
        '': {},
        ', Pillow alone': {'pillow_alone': True},
        ', worker processes': {'workers': True},
    }.items():
        pipelines.append(Contender(f'mae_jax{detail}', ours, options))
    name, options = 'mae_jax', {}
    for detail, option in {
        ', prepared': {'prepared': prepared},
        ', repeats=4': {'repeats': 4},
        ", resize='device'": {'resize': 'device', 'canvas': CANVAS},
    }.items():
        name, options = name + detail, options | option
        pipelines.append(Contender(name, ours, options))
    return [c for c in pipelines if importlib.util.find_spec(c.needs)]


def rate(pipeline: Pipeline, setting: Setting, seconds: float) -> float:
    """Measures the images per second of a running stream for at least this time."""
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
    """Runs a measuring process: answers seconds by a rate, 0 by the pixel difference, until None.

    The failure of a peer is an answer too, because an installed library may not work.
    """
    pipeline = None
    while (seconds := connection.recv()) is not None:
        try:
            pipeline = pipeline or contender.make(setting, **contender.options)
            answer = rate(pipeline, setting, seconds) if seconds else pipeline.difference()
        except Exception as error:
            if contender.needs == OURS:
                raise
            answer = NotMeasured(f'{contender.name}: {" ".join(str(error).split())[:200]}')
        connection.send(answer)


@contextlib.contextmanager
def measuring(contender: Contender, setting: Setting) -> Iterator[Callable[[float], float]]:
    """Starts `serve` in a process bound to `setting.cores`; gives a function that asks it."""
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
        answer = connection.recv()
        if isinstance(answer, NotMeasured):
            raise answer
        return answer

    try:
        yield ask
    finally:
        with contextlib.suppress(BrokenPipeError):  # it died, and has printed the reason
            connection.send(None)
        process.join()


class Measured(NamedTuple):
    name: str
    rates: np.ndarray
    """Images per second, [number of cores, repeats]."""
    difference: float


def measure(
    pipelines: Sequence[Contender],
    setting: Setting,
    cores: Sequence[int],
    repeats: int,
    seconds: float,
) -> Iterator[Measured | NotMeasured]:
    """Measures all pipelines in turn for each number of `cores`, after one turn to warm up."""
    with contextlib.ExitStack() as stack:
        ready = []
        for pipeline in pipelines:
            print(f'starting {pipeline.name}', file=sys.stderr)
            settings = [setting._replace(cores=n) for n in cores]
            ask = [stack.enter_context(measuring(pipeline, s)) for s in settings]
            try:
                pixels = ask[0](0)
                for process in ask:
                    process(seconds / 4)
            except NotMeasured as failure:
                yield failure
            else:
                ready.append((pipeline.name, ask, pixels))
        rates = np.empty((len(ready), len(cores), repeats))
        for repeat in range(repeats):
            print(f'repeat {repeat + 1} of {repeats}', file=sys.stderr)
            for i, (_, ask, _) in enumerate(ready):
                rates[i, :, repeat] = [process(seconds) for process in ask]
    for (name, _, pixels), of_one in zip(ready, rates, strict=True):
        yield Measured(name, of_one, pixels)


def table(measured: Sequence[Measured], cores: Sequence[int]) -> str:
    """Formats the results; ratios are of medians, over the original's pipeline if measured."""
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


def prepare(path: Path, folder: Path) -> None:
    """Runs `mae-jax prepare` in a process of its own."""
    command = [sys.executable, '-m', 'mae_jax', 'prepare', str(path), str(folder)]
    standard_error = 2  # the number: sys.stderr need not be a file
    subprocess.run(command, check=True, stdout=standard_error)


def _packages() -> str:
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    names = ('grain', 'numpy', 'pillow', 'torchvision', 'tensorflow', 'tensorflow_cpu')
    return ', '.join(f'{name} {installed[name]}' for name in names if name in installed)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--path', type=Path, help='of train/<class>/*.jpg; unset: images are made')
    parser.add_argument('--examples', type=int, default=2048, help='images that are made, or taken')
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
        prepared = Path(folder, 'prepared')
        pipelines = contenders(str(prepared))
        pipelines = [p for p in pipelines if args.only is None or p.name in args.only]
        if any('prepared' in p.options for p in pipelines):
            prepare(images, prepared)
        setting = Setting(str(images), args.image_size, args.batch_size, cores[0], args.compared)
        (*measured,) = measure(pipelines, setting, cores, args.repeats, args.seconds)
        kilobytes = np.mean([file.stat().st_size for file in images.glob('*/*/*')]) / 1e3
    from measure import hardware, versions  # imports JAX, which measuring processes do without

    from mae_jax.data.images.jpeg import is_built

    failures = [m for m in measured if isinstance(m, NotMeasured)]
    measured = [m for m in measured if isinstance(m, Measured)]
    print(f'JPEG to batches of {args.batch_size} x {args.image_size} px\n')
    built = 'built' if is_built() else 'not built: Pillow decodes'
    print(f'- {hardware()}\n- {versions()}, {_packages()}; data/images/_jpeg.c {built}')
    print(f'- {args.examples} images of {kilobytes:.0f} KB; medians of {args.repeats} repeats')
    print(*(f'- not measured: {failure}' for failure in failures), '', sep='\n')
    print(table(measured, cores))


if __name__ == '__main__':
    main()
