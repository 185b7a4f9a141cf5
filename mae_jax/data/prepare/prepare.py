"""`mae-jax prepare`: reads a data set once and writes shards of smaller images.

The content of a shard depends on the source and the options alone, and its file gets its name when
it is complete. However the command is stopped, running it again continues the work and ends with
the same bytes.
"""

import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable

from tqdm import tqdm

from mae_jax.data.prepare.shards import (
    TEMPORARY,
    ShardRange,
    complete_file,
    write_shard,
    write_shards,
)
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
    shard_problem,
)
from mae_jax.data.sources.protocol import Source
from mae_jax.errors import UserError, counted
from mae_jax.files.lock import claim
from mae_jax.files.paths import print_text
from mae_jax.runtime.cores import num_cores

MOST_SHARDS, LEAST_EXAMPLES = 256, 256
"""Bounds of the default number of shards of a split and of examples of a shard. A run keeps every
shard open, and stopping `prepare` loses the shards that are being written."""
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
    nodata: float | None = None,
    shard_examples: int | None = None,
    workers: int | None = None,
    on_error: str = 'raise',
    overwrite: bool = False,
    log: Callable[[str], None] = print_text,
) -> Contents:
    """Writes the shards that do not exist yet, then logs a summary of the data set.

    Args:
      source: a folder of images, or the name of a data set of encoded images (see `make_source`).
      destination: the directory to write.
      data_dir: the `path` of a source that is not a folder.
      splits: names of splits of the source; evaluation splits stand for each other.
      short_side, quality, channels, nodata: see `reduce_image`.
      shard_examples: images of a shard; None for at least 256, and at most 256 shards of a split.
      workers: processes; 1 for this one alone, None for one for each core.
      on_error: 'raise', or 'skip' to leave out images that cannot be read.
      overwrite: replace a data set that was prepared from another source or with other options.
      log: called with what was read, and with the summary.

    Returns:
      The content of `dataset.json`.

    Raises:
      UserError: the source, the destination or an option is not valid, the destination cannot be
        written, or an image cannot be read.
    """
    _check_options(short_side, quality, channels, shard_examples, workers)
    if '://' in destination:
        raise UserError(f'{destination} is no local directory: prepare in one, then copy it.')
    sources = _open_sources(source, tuple(splits), data_dir)
    for name, each in sources.items():
        if reading := getattr(each, 'reading', ()):
            log(f'{name}: {"; ".join(reading)}')
    options = {'short_side': short_side, 'quality': quality, 'channels': channels}
    if nodata is not None:
        options['nodata'] = nodata
    planned = Contents(
        os.path.basename(os.path.normpath(source)) if os.path.isdir(source) else source,
        options,
        {name: _plan_split(each, shard_examples) for name, each in sources.items()},
    )
    with claim(destination):
        contents = _resume(destination, planned, overwrite)
        write = functools.partial(write_shard, destination, sources, options, on_error)
        before, start = _count(contents), time.monotonic()
        _write_missing(destination, contents, write, workers or num_cores())
        seconds = time.monotonic() - start
    log(summarize(destination, contents, _count(contents) - before, seconds))
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


def _open_sources(source: str, splits: tuple[str, ...], data_dir: str | None) -> dict[str, Source]:
    if not splits:
        raise UserError('--splits names no split: give train, for example.')
    for name in splits:
        try:
            check_split_name(name)
        except ValueError as error:
            raise UserError(
                f'--splits: {error}: give names without slices, for splits are prepared whole.'
            ) from error
    is_folder = os.path.isdir(source)
    if source in ('digits', 'synthetic') and not is_folder:
        raise UserError(f'{source} is generated when it is used: there is nothing to prepare.')
    if not is_folder and (source.startswith(('/', '.', '~')) or not source):
        raise UserError(f'{source} is not a folder.')
    name, path = ('folder', source) if is_folder else (source, data_dir)
    return {split: make_source(name, split, path=path) for split in splits}


def _plan_split(source: Source, shard_examples: int | None) -> Split:
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
    """Returns the plan with the shards that exist already, and writes it to `dataset.json`."""
    files = os.listdir(destination)
    contents = planned
    if 'dataset.json' in files:
        try:
            contents = _read_same(destination, planned)
        except UserError:
            if not overwrite:
                raise
            # dataset.json last: if this is stopped, the directory is still a prepared data set.
            for file in filter(SHARD_FILE.fullmatch, files):
                os.remove(os.path.join(destination, file))
    elif others := [file for file in files if not file.startswith('.')]:
        raise UserError(
            f'{destination} contains other files ({sorted(others)[0]}): give a new directory.'
        )
    for file in files:
        if file.startswith(TEMPORARY):  # of a process that was killed
            os.remove(os.path.join(destination, file))
    _save(destination, contents)
    return contents


def _read_same(destination: str, planned: Contents) -> Contents:
    """Reads what was prepared by the same plan, without shards whose files are missing or damaged.

    Raises:
      UserError: the directory was prepared by another plan, or its `dataset.json` is damaged.
    """
    contents = read_contents(destination)
    old, new = map(_plan_fields, (contents, planned))
    differences = [
        f'{key} was {old.get(key, "unset")}, now {new.get(key, "unset")}'
        for key in old | new
        if repr(old.get(key)) != repr(new.get(key))  # --nodata=nan differs from itself
    ]
    if differences:
        raise UserError(
            f'{destination} was prepared differently ({"; ".join(differences[:5])}): give another '
            'directory, the same source and options, or --overwrite.'
        )
    for name, split in contents.splits.items():
        for number, shard in enumerate(split.shards):
            file = shard_name(name, number, len(split.shards))
            if shard and shard_problem(destination, file, shard):
                split.shards[number] = None
    return contents


def _plan_fields(contents: Contents) -> dict[str, object]:
    """Returns everything that decides what is in the shards, under a name for messages."""
    fields = {f'--{name}': value for name, value in contents.options.items()}
    for name, split in contents.splits.items():
        fields[f'the source of {name}'] = split.identity
        fields[f'images a shard of {name}'] = split.shard_examples
        for label, class_name in enumerate(split.class_names):
            fields[f'class {label} of {name}'] = class_name
    return fields


def _save(destination: str, contents: Contents) -> None:
    with complete_file(destination, 'dataset.json') as path, open(path, 'w') as file:
        file.write(contents.to_json())


def _write_missing(
    destination: str, contents: Contents, write: Callable[..., Shard], workers: int
) -> None:
    """Writes the shards that do not exist, and adds each to `dataset.json` when it is complete."""
    missing = [
        ShardRange(
            name, number, len(split.shards), start, min(start + split.shard_examples, examples)
        )
        for name, split in contents.splits.items()
        for examples in [split.source_examples]
        for number, start in enumerate(range(0, examples, split.shard_examples))
        if split.shards[number] is None
    ]
    images = sum(shard.stop - shard.start for shard in missing)
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=images, unit=' images', mininterval=interval, disable=not images) as bar:

        def report(message: str | None) -> None:
            if message:
                bar.write(message, file=sys.stderr)
            bar.update()

        for planned, shard in write_shards(missing, write, min(workers, len(missing)), report):
            contents.splits[planned.split].shards[planned.number] = shard
            _save(destination, contents)


def _count(contents: Contents) -> int:
    """Returns how many images of the source the complete shards were made from."""
    splits = contents.splits.values()
    return int(sum(split.total('examples') + split.total('skipped') for split in splits))


def summarize(destination: str, contents: Contents, done: int, seconds: float) -> str:
    """Describes a prepared data set: its size, the difference in pixels, and the speed.

    Args:
      destination: its directory.
      contents: its `dataset.json`.
      done: the number of images that this call has prepared.
      seconds: the time that it took.
    """
    lines = [f'{destination}: from {contents.source}, {contents.options}']
    for name, split in contents.splits.items():
        examples, skipped = split.total('examples'), split.total('skipped')
        before, after = split.total('source_bytes'), split.total('bytes')
        lines.append(
            f'{name}: {counted(examples, "image")} in {counted(len(split.shards), "shard")}, '
            f'{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB'
            + (f'; {skipped:,} left out that could not be read' if skipped else '')
        )
        if compared := split.total('compared'):
            train, evaluation = (
                split.total(f'{kind}_difference') / compared for kind in ('train', 'eval')
            )
            lines.append(
                f'pixel difference, of {counted(compared, "image")}: {train:.3f} a training crop, '
                f'{evaluation:.3f} an evaluation crop (mean absolute, of 0 to 255)'
            )
    if done:
        lines.append(
            f'{counted(done, "image")} in {seconds:,.0f} s, {done / seconds:,.0f} images/s'
        )
    return '\n'.join(lines)
