"""What a run says of itself: what is about to run, what came of it, where things are."""

import csv
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath

from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.config.data import eval_batch_size, eval_passes
from mae_jax.evaluation.exact import make_evaluate
from mae_jax.evaluation.probe import describe
from mae_jax.experiment.build import Run
from mae_jax.experiment.model_card import write_model_card
from mae_jax.experiment.probes import encoder_accuracies
from mae_jax.runtime.processes import say
from mae_jax.training.console import parameter_table
from mae_jax.training.state import TrainState, create_state

SCORE = 'eval/top1'
"""What the best checkpoint is the best by."""


def announce(parts: Run, state: TrainState) -> None:
    """What is about to run: the model, the machine, the length."""
    devices, config, length = parts.mesh.devices.flat, parts.config, parts.length
    say(parameter_table(state.params, parts.task.is_trained))
    epochs = length.num_steps / length.steps_per_epoch
    say(
        f'{len(parts.source):,} examples of {config.dataset.name}; {length.num_steps:,} steps of '
        f'{config.batch_size} ({epochs:.1f} epochs), {length.warmup_steps:,} of warm-up'
    )
    if length.cut_warmup:
        say('the warm-up is longer than the run, and is cut to it')
    say(
        f'{parts.mesh.size} {devices[0].device_kind} device(s), {jax.process_count()} process(es), '
        f'mesh {dict(parts.mesh.shape)}; writing to {parts.workdir}'
    )


def make_evaluation(
    parts: Run, alive: Callable[[], None] = lambda: None
) -> Callable[[TrainState], dict[str, np.ndarray]]:
    """Sums over `eval_examples` held-out images, evenly spread over the split, or all of them."""
    examples = min(parts.config.eval_examples or len(parts.held_out), len(parts.held_out))
    batch_size = eval_batch_size(parts.config, parts.mesh, examples)
    passes = eval_passes(parts.config, parts.held_out, parts.mesh, batch_size, examples, alive)
    return make_evaluate(parts.task, parts.mesh, passes, batch_size)


def report_evaluation(parts: Run, state: TrainState) -> None:
    """Says what the state is worth on the held-out examples."""
    sums = make_evaluation(parts)(state)
    count = sums['count']
    said = {'top1': '{:.4f} top-1', 'top5': '{:.4f} top-5', 'loss': 'loss {:.4f}'}
    values = [text.format(sums[name] / count) for name, text in said.items() if name in sums]
    say(f'step {int(state.step)}, {count:,.0f} held-out images: {", ".join(values)}')
    if 'class_count' in sums and jax.process_index() == 0:
        write_classes(parts.workdir / 'per_class.csv', parts.held_out.class_names, sums)


def write_classes(path: epath.Path, names: Sequence[str], sums: dict[str, np.ndarray]) -> None:
    """The top-1 accuracy of every class that occurs, as CSV, the worst first."""
    hits, counts = sums['class_hits'], sums['class_count']
    present = np.flatnonzero(counts)
    worst_first = present[np.argsort(hits[present] / counts[present], kind='stable')]
    with path.open('w') as file:
        rows = csv.writer(file)
        rows.writerow(['class', 'images', 'top1'])
        for c in worst_first:
            rows.writerow([names[c], int(counts[c]), f'{hits[c] / counts[c]:.4f}'])
    say(f'accuracy of every class: {path}')


def conclude(parts: Run, checkpoints: Checkpoints, state: TrainState) -> None:
    """Says that the run is finished, what it is worth if asked, and where things are; the card."""
    step = int(state.step)
    say(f'finished at step {step} of {parts.length.num_steps}')
    results = []
    if parts.config.get('probe_at_end'):
        untrained = create_state(parts.task, parts.tx, parts.mesh, parts.config.seed)
        results = [encoder_accuracies(parts, s.params) for s in (untrained, state)]
        say('accuracy of the frozen encoder             untrained  pretrained')
        for name, value in results[1].items():
            say(f'  {describe(name):<40} {results[0][name]:9.3f}  {value:10.3f}')
    if parts.config.get('per_class'):
        report_evaluation(parts, state)
    picture = parts.workdir / 'images' / 'latest.png'
    if picture.exists():
        say(f'reconstructions: {picture}')
    folder = parts.workdir / 'checkpoints'
    if best := checkpoints.best():
        meta = checkpoints.read_meta(step)
        if SCORE in meta:
            say(f'top-1 {meta[SCORE]:.4f}, top-5 {meta["eval/top5"]:.4f}')
        say(f'best checkpoint: {folder / str(best[0])} (top-1 {best[1]:.4f})')
    say(f'last checkpoint: {folder / str(step)}')
    write_model_card(parts, state, accuracies=results, best=best)
