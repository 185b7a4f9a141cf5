"""Writes `<workdir>/model_card.md`: model, data, training, results and use of a finished run.

Everything in it was configured, counted or measured by the run; what is not known is left out.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from clu.parameter_overview import count_parameters
from etils import epath
from ml_collections import ConfigDict

from mae_jax.checkpoints.find import read_meta
from mae_jax.config.model import (
    describe_dtype,
    encoder_options,
    image_size,
    make_architecture,
)
from mae_jax.errors import counted
from mae_jax.evaluation.probe import accuracy_title
from mae_jax.experiment.card_header import card_header
from mae_jax.experiment.setup import Setup
from mae_jax.models.vit import architecture
from mae_jax.runtime.processes import say
from mae_jax.runtime.versions import versions
from mae_jax.training.console import format_seconds
from mae_jax.training.state import TrainState
from mae_jax.training.task import Card

Rows = Mapping[str, str | None]
"""Name -> text; None leaves a row out."""
Accuracies = Mapping[str, float]
"""Of `accuracies`."""

MEASURES = {
    'loss': 'training loss, mean since the log line before',
    'eval/loss': 'held-out loss',
    'eval/top1': 'held-out top-1',
    'eval/top5': 'held-out top-5',
    'eval/miou': 'held-out mIoU',
    'eval/pixel_accuracy': 'held-out pixel accuracy',
    **{
        f'eval/{kind}_{name}': f'held-out {kind} {text}'
        for kind in ('box', 'mask')
        for name, text in {'ap': 'AP', 'ap50': 'AP50', 'ap75': 'AP75'}.items()
    },
    'probe/knn': 'k-NN, a share of the data',
    'probe/linear': 'linear probe, a share of the data',
}
"""Metrics of metrics.jsonl that the card shows, and their names in it."""


def write_model_card(
    setup: Setup,
    state: TrainState,
    *,
    accuracies: Sequence[Accuracies] = (),
    best: tuple[int, float] | None = None,
) -> None:
    """Writes the card of a finished run, from one process.

    Args:
      setup: of the run.
      state: its last.
      accuracies: of the frozen encoder, untrained and pretrained, where they were measured.
      best: step and score of the best checkpoint, where one has a score.
    """
    if jax.process_index():
        return
    devices, config = list(setup.mesh.devices.flat), setup.config
    step, picture = int(state.step), 'images/latest.png'
    software = ', '.join(f'{name} {version}' for name, version in versions().items())
    card = model_card(
        config,
        setup.task.card(config, setup.source),
        path=str(setup.workdir),
        step=step,
        examples=(len(setup.source), len(setup.held_out)),
        warmup_steps=setup.length.warmup_steps,
        sizes={name: count_parameters(part) for name, part in state.params.items()},
        metrics=read_metrics(setup.workdir / 'metrics.jsonl'),
        accuracies=accuracies,
        best=best,
        score_label=setup.task.score_label,
        train_seconds=read_meta(setup.workdir / 'checkpoints' / str(step)).get('train_seconds'),
        picture=picture if (setup.workdir / picture).exists() else None,
        picture_name=setup.task.picture_name,
        machine=f'{software}; {counted(len(devices), f"{devices[0].device_kind} device")}, '
        f'{counted(jax.process_count(), "process")}',
    )
    path = setup.workdir / 'model_card.md'
    try:
        path.write_text(card)
    except OSError as error:  # what was trained is safe, and the card can be written again
        say(f'{path} cannot be written ({error.strerror or error}): run the same command again')
    else:
        say(f'model card: {path}')


def model_card(
    config: ConfigDict,
    task: Card,
    *,
    path: str,
    step: int,
    examples: tuple[int, int],
    warmup_steps: int,
    sizes: Mapping[str, int],
    metrics: Sequence[Mapping[str, float | None]],
    machine: str,
    accuracies: Sequence[Accuracies] = (),
    best: tuple[int, float] | None = None,
    score_label: str = '',
    train_seconds: float | None = None,
    picture: str | None = None,
    picture_name: str = 'reconstruction',
) -> str:
    """Returns the card as Markdown.

    Args:
      config: of the run, complete.
      task: what the task states about its model.
      path: of the work directory.
      step: the last one.
      examples: numbers of training and held-out examples.
      warmup_steps: of the learning rate, as the run had them.
      sizes: the number of parameters of each component of the model.
      metrics: the lines of metrics.jsonl.
      machine: software and devices of the last start.
      accuracies, best: as of `write_model_card`.
      score_label: name of the score of `best`.
      train_seconds: of all starts together; None where it is not known.
      picture: path of the last picture, relative to that of the card.
      picture_name: what it shows.
    """
    name, measured = epath.Path(path).name, _last_measured(metrics)
    header_results = [(metric, MEASURES[metric], value) for metric, (_, value) in measured.items()]
    header = card_header(name, config.task, config.dataset.name, header_results)
    duration = train_seconds and f'{format_seconds(train_seconds)}, evaluation included'
    sections = [
        f'{header}\n\n# {name}',
        f'{task.title} with mae_jax. The encoder is a {_encoder(config)}.',
        '## Model',
        _table(_model(config, task, sizes)),
        '## Training',
        _table(
            _training(config, step, examples, warmup_steps)
            | {'training time': duration, 'last start': machine}
        ),
        'Every field is in `config.json`.',
    ]
    if results := _results(measured, accuracies, best, score_label):
        sections += ['## Results', *results]
    if picture:
        sections += ['## Pictures', f'![Held-out images and their {picture_name}s]({picture})']
    sections += ['## Use', _use(config, task, path, best)]
    return '\n\n'.join(sections) + '\n'


def _encoder(config: ConfigDict) -> str:
    """Names the encoder: by its variant, or by width and depth where it is none of them."""
    sizes, variant = make_architecture(config.model), config.model.variant
    same = architecture(variant, patch_size=sizes['patch_size']) == sizes
    return variant if same else f'ViT (width {sizes["width"]}, depth {sizes["depth"]})'


def _model(config: ConfigDict, task: Card, sizes: Mapping[str, int]) -> Rows:
    data, encoder, (height, width) = (
        config.dataset,
        make_architecture(config.model),
        image_size(config),
    )
    patch = encoder['patch_size']
    counts = ', '.join(f'{name} {size:,}' for name, size in sizes.items())
    options = encoder_options(config.model).changed()
    return {
        'encoder': 'width {width}, depth {depth}, {heads} heads'.format(**encoder),
        'encoder options': ', '.join(f'{n}={x}' for n, x in options.items()) or None,
        **task.rows,
        'parameters': f'{sum(sizes.values()):,} ({counts})',
        'image size': f'{height} x {width}, patches of {patch} x {patch}',
        'channels': f'{data.channels}',
        'normalisation': f'(image / {data.scale:g} - mean) / std, mean {_numbers(data.mean)}, '
        f'std {_numbers(data.std)}',
    }


def _training(config: ConfigDict, step: int, examples: tuple[int, int], warmup_steps: int) -> Rows:
    optimizer = config.optimizer
    peak = optimizer.base_lr * config.batch_size / 256
    averaged, layer_decay = config.get('ema_decay'), optimizer.get('layer_decay')
    data = f'{config.dataset.name}, {counted(examples[0], "example")}, {examples[1]:,} held out'
    if (config.eval_examples or examples[1]) < examples[1]:
        data += f' (evaluation sees {config.eval_examples:,} of them)'
    return {
        'data': data,
        'started from': config.init_from and f'`{config.init_from}`',
        'length': f'{counted(step, "step")} of {config.batch_size:,} images, '
        f'{step * config.batch_size / examples[0]:.1f} epochs',
        'optimiser': f'{optimizer.name}, weight decay {optimizer.weight_decay:g}',
        'learning rate': f'{peak:g} ({optimizer.base_lr:g} for a batch of 256), '
        f'{counted(warmup_steps, "step")} of warm-up, then {_falling(optimizer)}',
        'layer decay': None if layer_decay is None else f'{layer_decay:g}',
        'parameters kept': averaged and f'running average, decay {averaged:g}',
        'activations': describe_dtype(config.model),
        'seed': f'{config.seed}',
    }


def _falling(optimizer: ConfigDict) -> str:
    """Describes the learning rate after the warm-up."""
    shape = optimizer.get('schedule', 'cosine')
    if shape != 'steps':
        return f'{shape} to {optimizer.min_lr:g}'
    shares = ' and '.join(f'{share:.1%}' for share in optimizer.drop_at or ())
    return f'constant, a tenth from {shares} of the run on' if shares else 'constant'


def _last_measured(
    metrics: Sequence[Mapping[str, float | None]],
) -> dict[str, tuple[int, float]]:
    """Returns the last (step, value) of each of `MEASURES` that is finite, in their order."""
    last = {
        name: (line['step'], line[name])
        for line in metrics
        for name in MEASURES
        if line.get(name) is not None
    }
    return {name: last[name] for name in MEASURES if name in last}


def _results(
    measured: Mapping[str, tuple[int, float]],
    accuracies: Sequence[Accuracies],
    best: tuple[int, float] | None,
    score_label: str,
) -> list[str]:
    rows = [(MEASURES[name], *last) for name, last in measured.items()]
    if best:
        rows.append((f'held-out {score_label} of the best checkpoint', *best))
    tables = []
    if rows:
        rows = [(text, f'{value:.4f}', f'{step:,}') for text, step, value in rows]
        tables.append(_grid(('', 'value', 'step'), rows))
    if accuracies:
        names = accuracies[0]
        rows = [(accuracy_title(n), *(f'{values[n]:.4f}' for values in accuracies)) for n in names]
        header = ('accuracy of the frozen encoder', 'untrained', 'pretrained')
        tables.append(_grid(header, rows))
    return tables


def _use(config: ConfigDict, task: Card, path: str, best: tuple[int, float] | None) -> str:
    height, width = image_size(config)
    better = f'  # its last checkpoint; the best: {path}/checkpoints/{best[0]}' if best else ''
    shape = f'8, {height}, {width}, {config.dataset.channels}'
    load = 'model, params = mae_jax.load(path)\n' if task.is_loaded else ''
    library, other = task.converts_to
    what = 'The model' if task.is_loaded or library == 'detectron2' else 'The encoder'
    imports = ('import jax\n' if task.needs_key else '') + 'import numpy as np\n\nimport mae_jax'
    return f"""\
```python
{imports}

path = {path!r}{better}
images = np.zeros(({shape}))  # yours: [B, H, W, C], numbers as in the files
normalize = mae_jax.load_normalize(path)

# The encoder, for a model of your own; output: 'tokens', 'cls', 'mean' or 'map'.
encoder, params = mae_jax.load_encoder(path)
features = encoder.apply({{'params': params}}, normalize(images), method='features', output='mean')

# The whole model.
{load}{task.example}
```

{what}, as one file or with the names of {library}:

    mae-jax convert {shlex.quote(path)} model.safetensors
    mae-jax convert {shlex.quote(path)} {other}"""


def _table(rows: Rows) -> str:
    return _grid(('', ''), [(name, text) for name, text in rows.items() if text])


def _grid(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def _numbers(values: Sequence[float]) -> str:
    return ', '.join(f'{value:g}' for value in values)


def read_metrics(path: epath.Path) -> list[dict[str, float | None]]:
    """Reads the lines of metrics.jsonl; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
