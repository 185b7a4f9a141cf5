"""Reports on the console what is about to run, what came of it, and where the files are."""

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu.metrics import Collection
from clu.parameter_overview import count_parameters
from etils import epath
from flax import traverse_util

from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.config.model import describe_dtype, image_size, make_architecture
from mae_jax.errors import counted
from mae_jax.evaluation.exact import count_examples
from mae_jax.evaluation.probe import accuracy_title
from mae_jax.experiment.cautions import at_chance, cautions, say_caution, standard_error
from mae_jax.experiment.data_report import describe_data
from mae_jax.experiment.hooks import make_evaluation
from mae_jax.experiment.model_card import write_model_card
from mae_jax.experiment.online_probe import encoder_accuracies
from mae_jax.experiment.setup import Setup
from mae_jax.experiment.workdir import explained
from mae_jax.interop.trained import CLASS_COLOURS, CLASS_NAMES
from mae_jax.runtime.processes import say
from mae_jax.training.console import parameter_table
from mae_jax.training.state import TrainState, create_state

FORMATS = {
    'top1': '{:.4f} top-1',
    'top5': '{:.4f} top-5',
    'miou': '{:.4f} mIoU',
    'pixel_accuracy': '{:.4f} pixel accuracy',
    'box_ap': '{:.4f} box AP',
    'mask_ap': '{:.4f} mask AP',
    'loss': 'loss {:.4f}',
}
"""How metrics of an evaluation are written, in this order; others follow by their names."""


def announce(setup: Setup, state: TrainState) -> None:
    """Prints model, machine, length and cautions; the table of parameters goes to a file.

    Raises:
      UserError: the file cannot be written.
    """
    devices, config, length = setup.mesh.devices.flat, setup.config, setup.length
    write_class_names(setup)
    for line in describe_data(config, setup.source, setup.held_out):
        say(line)
    say(model_summary(setup, state))
    table = setup.workdir / 'parameters.txt'
    if jax.process_index() == 0:
        with explained(table):
            table.write_text(parameter_table(state.params, setup.task.is_trained) + '\n')
    shape = dict(setup.mesh.shape)
    mesh = f', mesh {shape}' if setup.mesh.size > 1 else ''
    machine = counted(setup.mesh.size, f'{devices[0].device_kind} device')
    say(f'{machine}, {counted(jax.process_count(), "process")}{mesh}')
    say(setup.reading)
    say(f'writing to {setup.workdir}')
    if setup.recipe:
        say(setup.recipe)
    epochs = length.num_steps / length.steps_per_epoch
    say(
        f'{counted(len(setup.source), "example")} of {config.dataset.name}; '
        f'{counted(length.num_steps, "step")} of '
        f'{config.batch_size} ({epochs:.1f} epochs), {length.warmup_steps:,} of warm-up'
    )
    for caution in cautions(setup):
        say_caution(caution)


def write_class_names(setup: Setup) -> None:
    """Writes the names of the classes, in the order of the logits, and their colours, if any.

    Raises:
      UserError: a file cannot be written.
    """
    source = setup.source
    names = list(source.class_names) if 'num_classes' in setup.config else []
    colours = np.array(getattr(source, 'class_colours', ())).tolist() if names else []
    for name, content in {CLASS_NAMES: names, CLASS_COLOURS: colours}.items():
        file = setup.workdir / name
        if content and jax.process_index() == 0:
            with explained(file):
                file.write_text(json.dumps(content, indent=0) + '\n')


def model_summary(setup: Setup, state: TrainState) -> str:
    """Describes the model in three lines: the encoder, the number of parameters, the trained."""
    config, sizes = setup.config, make_architecture(setup.config.model)
    height, width = image_size(config)
    flat = traverse_util.flatten_dict(state.params, sep='/')
    trained = sum(value.size for name, value in flat.items() if setup.task.is_trained(name))
    parts = [f'{name} {count_parameters(part):,}' for name, part in state.params.items()]
    return (
        f'encoder: {sizes["depth"]} blocks of width {sizes["width"]}, {sizes["heads"]} heads, '
        f'patches of {sizes["patch_size"]}, {height} x {width} pixels\n'
        f'parameters: {", ".join(parts)}\n'
        f'{count_parameters(state.params):,} parameters, {trained:,} of them trained '
        f'(parameters.txt); {describe_dtype(config.model)}'
    )


def report_evaluation(setup: Setup, state: TrainState) -> None:
    """Evaluates the state on the held-out examples and prints its metrics."""
    metrics = make_evaluation(setup)(state)
    values = {name: x for name, x in metrics.compute().items() if not np.ndim(x)}
    formats = FORMATS | {name: f'{name} {{:.4f}}' for name in values if name not in FORMATS}
    line = ', '.join(text.format(values[n]) for n, text in formats.items() if n in values)
    count = round(count_examples(metrics))
    remark = standard_error(count) if 'top1' in values else ''
    say(f'step {int(state.step)}, {count:,} held-out images: {line}{remark}')
    if jax.process_index():
        return
    for name, text in setup.task.result_files(metrics).items():
        file = setup.workdir / name
        with explained(file):
            file.write_text(text)
        say(f'{file} is written')
    if setup.task.per_class:
        write_classes(setup.workdir / 'per_class.csv', setup.held_out.class_names, metrics)


def write_classes(path: epath.Path, names: Sequence[str], metrics: Collection) -> None:
    """Writes the accuracy, IoU or APs of every class that occurs as CSV, the lowest first."""
    per_class = metrics.per_class
    counts, values = per_class.count, np.atleast_2d(per_class.compute())
    present = np.flatnonzero(~np.isnan(values[0]))
    lowest_first = present[np.argsort(values[0, present], kind='stable')]
    with path.open('w', encoding='utf-8') as file:
        rows = csv.writer(file)
        rows.writerow(['class', *per_class.columns])
        for c in lowest_first:
            rows.writerow([names[c], int(counts[c]), *(f'{value:.4f}' for value in values[:, c])])
    say(f'{per_class.title} of every class: {path}')


def conclude(setup: Setup, checkpoints: Checkpoints, state: TrainState) -> None:
    """Prints what the finished run is worth and where its files are, and writes its model card."""
    step, task = int(state.step), setup.task
    say(f'finished at step {step} of {setup.length.num_steps}')
    warn_at_chance(setup, checkpoints.read_meta(step))
    accuracies = compare_with_untrained(setup, state) if task.probes_at_end else ()
    if task.per_class:
        report_evaluation(setup, state)
    picture = setup.workdir / 'images' / 'latest.png'
    if picture.exists():
        say(f'{task.picture_name}s: {picture}')
    folder = setup.workdir / 'checkpoints'
    if best := checkpoints.best():
        meta = checkpoints.read_meta(step)
        if task.score in meta and not task.per_class:  # it has been printed above
            count = min(len(setup.held_out), setup.config.eval_examples or len(setup.held_out))
            remark = standard_error(count) if 'eval/top1' in meta else ''
            say(f'{task.score_line(meta)}{remark}')
        label = task.score_label
        say(f'best checkpoint: {folder / str(best[0])} ({label} {best[1]:.4f})')
    say(f'last checkpoint: {folder / str(step)}')
    write_model_card(setup, state, accuracies=accuracies, best=best)


def warn_at_chance(setup: Setup, metrics: Mapping[str, Any]) -> None:
    """Prints a sentence where the last accuracy of a classifier is what guessing reaches."""
    top1, held_out = metrics.get('eval/top1'), setup.held_out
    if top1 is None or not setup.source.num_classes:
        return
    labels = getattr(held_out, 'labels', None)
    if line := at_chance(top1, labels, setup.source.num_classes, len(held_out)):
        say_caution(line)


def compare_with_untrained(setup: Setup, state: TrainState) -> list[dict[str, float]]:
    """Probes the frozen encoder, untrained and trained, and prints both."""
    start = create_state(setup.task, setup.optimizer, setup.mesh, setup.config.seed)
    untrained, trained = (encoder_accuracies(setup, s.params) for s in (start, state))
    say('accuracy of the frozen encoder             untrained  pretrained')
    for name, value in trained.items():
        say(f'  {accuracy_title(name):<40} {untrained[name]:9.3f}  {value:10.3f}')
    return [untrained, trained]
