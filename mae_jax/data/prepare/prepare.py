"""`mae-jax prepare`: a data set, read once and written as shards of smaller images.

What a shard holds depends on the source and the options alone, and it appears under its name when
it is whole: whoever is stopped, in whatever way, goes on with the same command and ends with the
same bytes. `py` has the layout and reads it, `shards.py` writes shards, `reduce.py` says
what becomes of an image.
"""

import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable

from tqdm import tqdm

from mae_jax.data.loader.read_ahead import num_cores
from mae_jax.data.prepare.shards import TEMPORARY, Task, whole_file, write_shard, write_shards
from mae_jax.data.sources.make import make_source
from mae_jax.data.sources.prepared_format import (
    MAX_EXAMPLES,
    MAX_SHARDS,
    Contents,
    Shard,
    Split,
    check_split_name,
    read_contents,
    shard_name,
    wrong_file,
)
from mae_jax.errors import UserError
from mae_jax.files.lock import claim

MOST_SHARDS, LEAST_EXAMPLES = 256, 256
"""Of a split, and of a shard: a process keeps a shard open, and a stop costs the ones begun."""
SHARD_FILE = re.compile(r'\w+-\d{5}-of-\d{5}\.array_record')


def prepare(
    source: str,
    destination: str,
    *,
    data_dir: str | None = None,
    splits: Iterable[str] = ('train', 'validation'),
    short_side: int = 256,
    quality: int = 95,
    channels: int = 3,
    shard_examples: int | None = None,
    workers: int | None = None,
    on_error: str = 'raise',
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Contents:
    """Writes the shards that are not there yet, then says what there is.

    Args:
      source: a folder of images, or the TFDS name of a data set.
      destination: the directory to write.
      data_dir: of TFDS.
      splits: of the source; what evaluation is called there is found.
      short_side, quality, channels: see `reduce_image`.
      shard_examples: images a shard; None: at least 256, and at most 256 shards a split.
      workers: processes; 1: none but this one; None: one a core.
      on_error: 'raise', or 'skip' to leave out images that cannot be read.
      overwrite: replace what was prepared otherwise.
      say: given lines of text.

    Raises:
      UserError: source, destination or options are not as they should be, or an image is not.
    """
    _check_options(short_side, quality, channels, shard_examples, workers)
    if '://' in destination:
        raise UserError(f'{destination} is no local directory: prepare there, then copy it.')
    sources = _open_sources(source, tuple(splits), data_dir)
    options = {'short_side': short_side, 'quality': quality, 'channels': channels}
    planned = Contents(
        os.path.basename(os.path.normpath(source)) if os.path.isdir(source) else source,
        options,
        {name: _plan_split(each, shard_examples) for name, each in sources.items()},
    )
    with claim(destination):
        contents = _resume(destination, planned, overwrite)
        write = functools.partial(write_shard, destination, sources, options, on_error)
        began, seconds = _count(contents), time.monotonic()
        _write_missing(destination, contents, write, workers or num_cores())
        seconds = time.monotonic() - seconds
    say(describe(destination, contents, _count(contents) - began, seconds))
    return contents


def _check_options(short_side, quality, channels, shard_examples, workers) -> None:
    for name, value, least, most in (
        ('--short_side', short_side, 1, 1 << 16),
        ('--quality', quality, 1, 100),
        ('--channels', channels, 1, 1 << 16),
        ('--shard_examples', shard_examples, 1, MAX_EXAMPLES),
        ('--workers', workers, 1, 4096),
    ):
        if value is not None and not least <= value <= most:
            raise UserError(f'{name} {value} must be from {least:,} to {most:,}.')


def _open_sources(source: str, splits: tuple[str, ...], data_dir: str | None) -> dict:
    if not splits:
        raise UserError('--splits names no split: give train, say.')
    for name in splits:
        try:
            check_split_name(name)
        except ValueError as error:
            raise UserError(f'--splits: {error}: splits are prepared whole.') from error
    is_folder = os.path.isdir(source)
    if source in ('digits', 'synthetic') and not is_folder:
        raise UserError(f'{source} is made when it is used: there is nothing to prepare.')
    if not is_folder and (source.startswith(('/', '.', '~')) or not source):
        raise UserError(f'{source} is not a folder.')
    name, path = ('folder', source) if is_folder else (source, data_dir)
    return {split: make_source(name, split, path=path) for split in splits}


def _plan_split(source, shard_examples: int | None) -> Split:
    examples = len(source)
    size = shard_examples or max(LEAST_EXAMPLES, -(-examples // MOST_SHARDS))
    shards = -(-examples // size)
    if shards > MAX_SHARDS:
        raise UserError(
            f'--shard_examples {size} would make {shards:,} shards of {examples:,} images: give '
            f'at least {-(-examples // MAX_SHARDS):,}.'
        )
    return Split(source.identity, list(source.class_names), examples, size, [None] * shards)


def _resume(destination: str, planned: Contents, overwrite: bool) -> Contents:
    """What is done of a plan. The directory's `dataset.json` says it from here on."""
    files = os.listdir(destination)
    contents = planned
    if 'dataset.json' in files:
        try:
            contents = _read_same(destination, planned)
        except UserError:
            if not overwrite:
                raise
            for file in filter(SHARD_FILE.fullmatch, files):  # dataset.json is replaced after them
                os.remove(os.path.join(destination, file))
    elif others := [file for file in files if not file.startswith('.')]:
        raise UserError(
            f'{destination} holds something else ({sorted(others)[0]}): give a new directory.'
        )
    for file in files:
        if file.startswith(TEMPORARY):  # of one that was killed
            os.remove(os.path.join(destination, file))
    _save(destination, contents)
    return contents


def _read_same(destination: str, planned: Contents) -> Contents:
    """What was prepared by this very plan, less the shards whose files are gone or damaged."""
    contents = read_contents(destination)
    old, new = map(_identify, (contents, planned))
    told = [
        f'{key} was {old.get(key, "unset")}, now {new.get(key, "unset")}'
        for key in old | new
        if old.get(key) != new.get(key)
    ]
    if told:
        raise UserError(
            f'{destination} was prepared otherwise ({"; ".join(told[:5])}): give another '
            'directory, the same source and options, or --overwrite.'
        )
    for name, split in contents.splits.items():
        for number, shard in enumerate(split.shards):
            file = shard_name(name, number, len(split.shards))
            if shard and wrong_file(destination, file, shard):
                split.shards[number] = None
    return contents


def _identify(contents: Contents) -> dict[str, object]:
    """What makes another data set where it differs, for each thing a name."""
    told = {f'--{name}': value for name, value in contents.options.items()}
    for name, split in contents.splits.items():
        told[f'the source of {name}'] = split.identity
        told[f'images a shard of {name}'] = split.shard_examples
        for label, class_name in enumerate(split.class_names):
            told[f'class {label} of {name}'] = class_name
    return told


def _save(destination: str, contents: Contents) -> None:
    with whole_file(destination, 'dataset.json') as path, open(path, 'w') as file:
        file.write(contents.to_json())


def _write_missing(
    destination: str, contents: Contents, write: Callable[..., Shard], workers: int
) -> None:
    """Writes what is not there, and notes each shard that is."""
    tasks = [
        Task(name, number, len(split.shards), start, min(start + split.shard_examples, examples))
        for name, split in contents.splits.items()
        for examples in [split.source_examples]
        for number, start in enumerate(range(0, examples, split.shard_examples))
        if split.shards[number] is None
    ]
    left = sum(task.stop - task.start for task in tasks)
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=left, unit=' images', mininterval=interval, disable=not left) as bar:

        def report(told: str | None) -> None:
            if told:
                bar.write(told, file=sys.stderr)
            bar.update()

        for task, shard in write_shards(tasks, write, min(workers, len(tasks)), report):
            contents.splits[task.split].shards[task.number] = shard
            _save(destination, contents)


def _count(contents: Contents) -> int:
    splits = contents.splits.values()
    return int(sum(split.total('examples') + split.total('skipped') for split in splits))


def describe(destination: str, contents: Contents, done: int, seconds: float) -> str:
    """What there is, and what it cost.

    Args:
      destination, contents: what was prepared.
      done: images of this time.
      seconds: that they took.
    """
    lines = [f'{destination}: from {contents.source}, {contents.options}']
    for name, split in contents.splits.items():
        examples, skipped = split.total('examples'), split.total('skipped')
        before, after = split.total('source_bytes'), split.total('bytes')
        lines.append(
            f'{name}: {examples:,} images in {len(split.shards)} shards, '
            f'{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB'
            + (f'; {skipped:,} left out that could not be read' if skipped else '')
        )
        if compared := split.total('compared'):
            train, evaluation = (
                split.total(f'{kind}_difference') / compared for kind in ('train', 'eval')
            )
            lines.append(
                f'pixel difference, of {compared} images: {train:.3f} a training crop, '
                f'{evaluation:.3f} an evaluation crop (mean absolute, of 0 to 255)'
            )
    if done:
        lines.append(f'{done:,} images in {seconds:,.0f} s, {done / seconds:,.0f} images/s')
    return '\n'.join(lines)
