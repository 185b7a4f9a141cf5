"""Reports on the console what is about to run, what came of it, and where the files are."""

import csv
from collections.abc import Sequence

import jax
import numpy as np
from clu.metrics import Collection
from etils import epath

from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.evaluation.exact import count_examples
from mae_jax.evaluation.probe import accuracy_title
from mae_jax.experiment.data_report import describe_data
from mae_jax.experiment.hooks import make_evaluation
from mae_jax.experiment.model_card import write_model_card
from mae_jax.experiment.online_probe import encoder_accuracies
from mae_jax.experiment.setup import Setup
from mae_jax.runtime.processes import say
from mae_jax.training.console import parameter_table
from mae_jax.training.state import TrainState, create_state

FORMATS = {'top1': '{:.4f} top-1', 'top5': '{:.4f} top-5', 'loss': 'loss {:.4f}'}
"""How metrics of an evaluation are written, in this order; others follow by their names."""


def announce(setup: Setup, state: TrainState) -> None:
    """Prints the model, the length of the run and the machine."""
    devices, config, length = setup.mesh.devices.flat, setup.config, setup.length
    for line in describe_data(config, setup.source, setup.held_out):
        say(line)
    say(parameter_table(state.params, setup.task.is_trained))
    epochs = length.num_steps / length.steps_per_epoch
    say(
        f'{len(setup.source):,} examples of {config.dataset.name}; {length.num_steps:,} steps of '
        f'{config.batch_size} ({epochs:.1f} epochs), {length.warmup_steps:,} of warm-up'
    )
    if length.cut_warmup:
        say('the warm-up is longer than the run, and is cut to it')
    say(
        f'{setup.mesh.size} {devices[0].device_kind} device(s), {jax.process_count()} process(es), '
        f'mesh {dict(setup.mesh.shape)}; writing to {setup.workdir}'
    )


def report_evaluation(setup: Setup, state: TrainState) -> None:
    """Evaluates the state on the held-out examples and prints its metrics."""
    metrics = make_evaluation(setup)(state)
    values = {name: x for name, x in metrics.compute().items() if not np.ndim(x)}
    formats = FORMATS | {name: f'{name} {{:.4f}}' for name in values if name not in FORMATS}
    line = ', '.join(text.format(values[n]) for n, text in formats.items() if n in values)
    say(f'step {int(state.step)}, {count_examples(metrics):,.0f} held-out images: {line}')
    if setup.task.per_class and jax.process_index() == 0:
        write_classes(setup.workdir / 'per_class.csv', setup.held_out.class_names, metrics)


def write_classes(path: epath.Path, names: Sequence[str], metrics: Collection) -> None:
    """Writes the top-1 accuracy of every class that occurs as CSV, the lowest first."""
    counts, accuracies = metrics.per_class.count, metrics.per_class.compute()
    present = np.flatnonzero(counts)
    lowest_first = present[np.argsort(accuracies[present], kind='stable')]
    with path.open('w', encoding='utf-8') as file:
        rows = csv.writer(file)
        rows.writerow(['class', 'images', 'top1'])
        for c in lowest_first:
            rows.writerow([names[c], int(counts[c]), f'{accuracies[c]:.4f}'])
    say(f'accuracy of every class: {path}')


def conclude(setup: Setup, checkpoints: Checkpoints, state: TrainState) -> None:
    """Prints what the finished run is worth and where its files are, and writes its model card."""
    step, task = int(state.step), setup.task
    say(f'finished at step {step} of {setup.length.num_steps}')
    accuracies = compare_with_untrained(setup, state) if task.probes_at_end else ()
    if task.per_class:
        report_evaluation(setup, state)
    picture = setup.workdir / 'images' / 'latest.png'
    if picture.exists():
        say(f'reconstructions: {picture}')
    folder = setup.workdir / 'checkpoints'
    if best := checkpoints.best():
        meta = checkpoints.read_meta(step)
        if task.score in meta:
            say(task.score_line(meta))
        label = task.score_label
        say(f'best checkpoint: {folder / str(best[0])} ({label} {best[1]:.4f})')
    say(f'last checkpoint: {folder / str(step)}')
    write_model_card(setup, state, accuracies=accuracies, best=best)


def compare_with_untrained(setup: Setup, state: TrainState) -> list[dict[str, float]]:
    """Probes the frozen encoder, untrained and trained, and prints both."""
    start = create_state(setup.task, setup.optimizer, setup.mesh, setup.config.seed)
    untrained, trained = (encoder_accuracies(setup, s.params) for s in (start, state))
    say('accuracy of the frozen encoder             untrained  pretrained')
    for name, value in trained.items():
        say(f'  {accuracy_title(name):<40} {untrained[name]:9.3f}  {value:10.3f}')
    return [untrained, trained]
