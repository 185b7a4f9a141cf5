"""Evaluates a classifier on images unlike its own: the task 'robustness', which trains nothing."""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mae_jax.config.data import eval_passes
from mae_jax.config.model import image_size, statistics
from mae_jax.config.workers import with_workers
from mae_jax.data.sources.classes import read_classes
from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.protocol import Source
from mae_jax.errors import UserError
from mae_jax.evaluation.exact import make_collect
from mae_jax.evaluation.robustness import (
    IMAGENET_CLASSES,
    Counts,
    imagenet_wnids,
    match_classes,
    put_first,
    with_classes,
)
from mae_jax.evaluation.robustness_report import Report, draw_plot, format_table, summarize
from mae_jax.evaluation.robustness_sets import ALL, KINDS, classes_alone, open_sets
from mae_jax.experiment.cautions import standard_error
from mae_jax.experiment.data_report import describe_data
from mae_jax.experiment.workdir import explained
from mae_jax.files.buckets import as_path, write_whole
from mae_jax.files.limits import read_json
from mae_jax.files.lock import claim
from mae_jax.interop.load import read_module
from mae_jax.models.classifier import Classifier
from mae_jax.runtime.agreement import from_first
from mae_jax.runtime.chips import choose_dtype
from mae_jax.runtime.processes import on_first, say
from mae_jax.tasks.classify import Classify
from mae_jax.training import sharding

RESULTS = 'results.json'
Results = dict[str, dict[str, Any]]
"""Name of a set -> its counts, and the identity of its images under 'data'."""


class Trained(NamedTuple):
    """A classifier that is evaluated.

    Attributes:
      task: whose metrics are collected.
      params, model_state: NumPy arrays.
      names: of its classes, in the order of its outputs.
      step: of its checkpoint, if it is known.
      config: with which it was trained.
    """

    task: Classify
    params: Any
    model_state: Any
    names: Sequence[str]
    step: int | None
    config: ConfigDict


def evaluate_robustness(
    config: ConfigDict, workdir: str, sources: tuple[Any, Any] | None = None
) -> dict[str, float]:
    """Runs the task 'robustness' on the classifier of `init_from`; writes table, plot and results.

    A set of images that results.json has already is not evaluated again.

    Args:
      config: of the task.
      workdir: where the files are written.
      sources: passed from Python; the second are the images that are corrupted.

    Returns:
      Shares by name, as of `summarize`.

    Raises:
      UserError: `init_from` is no classifier, its classes are not those of the images, or these
        are not what their kind has.
    """
    if not config.init_from:
        raise UserError("task='robustness' evaluates a classifier: give --config.init_from.")
    if config.eval_examples is not None and config.eval_examples < 1:
        raise UserError(f'eval_examples={config.eval_examples} (--images) must be at least 1.')
    mesh = sharding.make_mesh(config.mesh.fsdp)
    sharding.check_batch(config.batch_size, mesh)
    model = load_classifier(config)
    config, sets, reading = open_data(config, model, sources and sources[1])
    say(reading)
    count = make_count(model, config, mesh)
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(claim(workdir)))
        file, origin = as_path(workdir) / RESULTS, origin_of(model, config)
        done = from_first(lambda: read_results(file, origin))
        for name, source in sets.items():
            if done.get(name, {}).get('data') != source.identity:
                done[name] = {'data': source.identity} | count(source)._asdict()
                on_first(functools.partial(write_results, file, origin, done))
            say(describe(name, counts_of(done[name])))
        counts = {name: counts_of(done[name]) for name in sets}
        classes = next(iter(sets.values())).num_classes
        report = Report(config.robustness.kind, str(config.init_from), model.step, counts, classes)
        on_first(lambda: write_report(as_path(workdir), report))
    return summarize(report)


def load_classifier(config: ConfigDict) -> Trained:
    """Reads the classifier of `init_from`, and the names of its classes.

    Raises:
      UserError: it is no classifier, or the names are not known.
    """
    dtype = config.model.dtype
    dtype = choose_dtype(jax.default_backend()) if dtype == 'auto' else dtype
    module, trained = read_module(config.init_from, dtype)
    if not isinstance(module, Classifier):
        raise UserError(
            f'{config.init_from} is no classifier: fine-tune it first, mae-jax train finetune '
            f'--config.init_from={config.init_from}.'
        )
    names = class_names_of(config, trained.class_names, module.num_classes)
    module = module.clone(attention=config.model.attention)
    task = Classify(module, image_size(trained.config), **statistics(config))
    return Trained(task, trained.params, trained.model_state, names, trained.step, trained.config)


def class_names_of(config: ConfigDict, own: Sequence[str], classes: int) -> Sequence[str]:
    """Returns the names of a classifier's classes: those given, its own, or else ImageNet's.

    Args:
      config: of the task.
      own: names that the classifier has; () if they are unknown.
      classes: how many it has.

    Raises:
      UserError: they are not known, or are more or fewer than the classes.
    """
    given, names = config.robustness.classes, own
    if given == 'imagenet' or not (given or own or classes != IMAGENET_CLASSES):
        names = imagenet_wnids()
        say(f'the outputs of {config.init_from} are taken for ImageNet, its wnids sorted')
    elif given:
        names, _ = read_classes(given)
    if len(names) != classes:
        problem = f'{given} has {len(names):,} names' if given else 'it does not name its classes'
        raise UserError(
            f'{config.init_from} has {classes:,} outputs, and {problem}: give --classes FILE with '
            'the name of the folder of each class, a line each, in the order of the outputs.'
        )
    return names


def open_data(
    config: ConfigDict, model: Trained, own: Source | None
) -> tuple[ConfigDict, dict[str, Source], str]:
    """Opens the sets of images, as the classifier takes them; prints how the first was read.

    Returns:
      The config with all that reading them needs, the sets by name, and a line about the input.
    """
    config = ConfigDict(config.to_dict())
    config.image_size = tuple(model.task.image_size)
    if config.dataset.eval_crop_share is None:
        config.dataset.eval_crop_share = model.config.dataset.get('eval_crop_share')
    sets = open_sets(config, own)
    if config.robustness.kind in ('imagenet_c', 'corruptions'):  # they have been cropped
        config.dataset.eval_crop_share = 1.0
    first = next(iter(sets.values()))
    for line in describe_data(config, first, first):
        say(line)
    config, reading = with_workers(config, first)
    return config, sets, reading


def make_count(model: Trained, config: ConfigDict, mesh: Mesh) -> Callable[[Source], Counts]:
    """Makes the function that classifies all images of a set, each once, on all devices."""
    collect, kind = make_collect(model.task, mesh), KINDS[config.robustness.kind]
    where = str(config.dataset.path or config.dataset.name)

    def on_devices(tree: Any) -> Any:
        return jax.tree.map(sharding.put, tree, sharding.parameter_shardings(mesh, tree))

    params, model_state = on_devices(model.params), on_devices(model.model_state)

    def count(source: Source) -> Counts:
        columns = match_classes(model.names, source.class_names, where, str(config.init_from))
        columns = put_first(columns, len(model.names))
        head = with_classes(model.params['head'], columns, classes_alone(source, kind, where))
        examples = min(config.eval_examples or len(source), len(source))
        batch_size = min(config.batch_size, -(-examples // mesh.size) * mesh.size)
        passes = eval_passes(config, source, mesh, batch_size, examples, check=model.task.check)
        used = params | {'head': on_devices(head)}
        accuracy = collect(used, model_state, passes(), batch_size).top1
        return Counts(round(float(accuracy.total)), round(float(accuracy.count)))

    return count


def origin_of(model: Trained, config: ConfigDict) -> dict[str, Any]:
    """Returns what results depend on beside the images, as JSON has it."""
    names = ('eval_crop_share', 'apply_exif', 'channels', 'bands', 'nodata', 'scale', 'mean', 'std')
    head = [np.ascontiguousarray(array) for array in model.params['head'].values()]
    origin = {
        'init_from': str(config.init_from),
        'step': model.step,
        'head': content_identity('head', len(model.names), *head),
        'classes': content_identity('classes', len(model.names), '\n'.join(model.names).encode()),
        'dtype': np.dtype(model.task.model.dtype).name,
        'kind': config.robustness.kind,
        'eval_examples': config.eval_examples,
        'image_size': config.image_size,
        'dataset': {name: config.dataset.get(name) for name in names},
    }
    return json.loads(json.dumps(origin))


def read_results(file: epath.Path, origin: Mapping[str, Any]) -> Results:
    """Reads the results of this origin that a file has; none where there is no such file."""
    try:
        content = read_json(file)
        return dict(content['sets']) if content['origin'] == origin else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def write_results(file: epath.Path, origin: Mapping[str, Any], results: Results) -> None:
    """Writes the results that there are; raises a UserError where the file cannot be written."""
    write_text(file, json.dumps({'origin': origin, 'sets': results}, indent=1) + '\n')


def write_report(workdir: epath.Path, report: Report) -> None:
    """Writes table.md and plot.png, and prints the table.

    Raises:
      UserError: a file cannot be written.
    """
    table = format_table(report)
    write_text(workdir / 'table.md', table)
    say(f'\n{table}')
    say(f'table: {workdir / "table.md"}')
    if ALL in report.counts:
        return
    plot, picture = workdir / 'plot.png', draw_plot(report)
    if picture is None:
        say('no plot.png: matplotlib is not installed (pip install matplotlib)')
        return
    with explained(plot):
        plot.write_bytes(picture)
    say(f'plot: {plot}')


def write_text(file: epath.Path, text: str) -> None:
    """Writes a text file whole; raises a UserError where it cannot be written."""
    with explained(file):
        write_whole(file, text)


def counts_of(result: Mapping[str, Any]) -> Counts:
    """Returns the counts of a set in results.json."""
    return Counts(result['correct'], result['images'])


def describe(name: str, counts: Counts) -> str:
    """Returns a line about a set."""
    remark = standard_error(counts.images)
    return f'{name}: error {100 * counts.error:.2f}% of {counts.images:,} images{remark}'
