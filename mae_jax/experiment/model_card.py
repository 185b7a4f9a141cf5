"""`<workdir>/model_card.md`: what a finished run trained, on what, what came of it, how to load it.

Everything in it was configured, counted or measured by the run; what is not known is left out.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
from etils import epath
from ml_collections import ConfigDict

from mae_jax.config.model import image_size, make_architecture
from mae_jax.evaluation.probe import describe
from mae_jax.experiment.build import Run
from mae_jax.models.vit import architecture
from mae_jax.runtime.processes import say
from mae_jax.training.state import TrainState

Rows = Mapping[str, str | None]
"""Name -> text; None where it is not known."""
Accuracies = Mapping[str, float]
"""Of `accuracies`."""

MEASURES = {
    'loss': 'training loss, mean since the log line before',
    'eval/loss': 'held-out loss',
    'eval/top1': 'held-out top-1',
    'eval/top5': 'held-out top-5',
    'probe/knn': 'k-NN, a share of the data',
    'probe/linear': 'linear probe, a share of the data',
}
"""What metrics.jsonl may hold of what a model is worth."""


def write_model_card(
    parts: Run,
    state: TrainState,
    *,
    accuracies: Sequence[Accuracies] = (),
    best: tuple[int, float] | None = None,
) -> None:
    """Writes the card of a finished run, from one process.

    Args:
      parts: of the run.
      state: its last.
      accuracies: of the frozen encoder, untrained and pretrained, where they were measured.
      best: step and top-1 of the best checkpoint, where one has a score.
    """
    if jax.process_index():
        return
    devices = list(parts.mesh.devices.flat)
    card = model_card(
        parts.config,
        path=str(parts.workdir),
        step=int(state.step),
        examples=(len(parts.source), len(parts.held_out)),
        warmup_steps=parts.length.warmup_steps,
        sizes={name: _size(part) for name, part in state.params.items()},
        metrics=_read_metrics(parts.workdir / 'metrics.jsonl'),
        classes=parts.source.num_classes if parts.config.task == 'classify' else None,
        accuracies=accuracies,
        best=best,
        machine=f'jax {jax.__version__}, flax {flax.__version__}; '
        f'{len(devices)} {devices[0].device_kind} device(s), {jax.process_count()} process(es)',
    )
    path = parts.workdir / 'model_card.md'
    try:
        path.write_text(card)
    except OSError as error:  # what was trained is safe, and the card can be written again
        say(f'{path} cannot be written ({error.strerror or error}): run the same command again')
    else:
        say(f'model card: {path}')


def model_card(
    config: ConfigDict,
    *,
    path: str,
    step: int,
    examples: tuple[int, int],
    warmup_steps: int,
    sizes: Mapping[str, int],
    metrics: Sequence[Mapping[str, float | None]],
    machine: str,
    classes: int | None = None,
    accuracies: Sequence[Accuracies] = (),
    best: tuple[int, float] | None = None,
) -> str:
    """The card, as Markdown.

    Args:
      config: of the run, complete.
      path: of its work directory.
      step: the last.
      examples: to train on and held out.
      warmup_steps: of the learning rate, as the run had them.
      sizes: the number of parameters of each part of the model.
      metrics: the lines of metrics.jsonl.
      machine: the software and the devices of its last start.
      classes: that a classifier tells apart.
      accuracies, best: as of `write_model_card`.
    """
    sections = [
        f'# {epath.Path(path).name}',
        _what(config),
        '## Model',
        _table(_model(config, sizes, classes)),
        '## Training',
        _table(_training(config, step, examples, warmup_steps) | {'last start': machine}),
        'Every field is in `config.json`.',
    ]
    if results := _results(metrics, accuracies, best):
        sections += ['## Results', *results]
    sections += ['## Use', _use(config, path, best)]
    return '\n\n'.join(sections) + '\n'


def _what(config: ConfigDict) -> str:
    sizes, variant = make_architecture(config.model), config.model.variant
    same = architecture(variant, patch_size=sizes['patch_size']) == sizes
    encoder = variant if same else f'ViT (width {sizes["width"]}, depth {sizes["depth"]})'
    if config.task == 'pretrain':
        kind = (
            'Masked autoencoder ([He et al., 2021](https://arxiv.org/abs/2111.06377)), pretrained'
        )
    elif config.trained == 'head':
        kind = 'Classifier: a linear probe of a frozen encoder, trained'
    elif config.trained != 'all':
        kind = f'Classifier, fine-tuned in its last {config.trained} block(s)'
    else:
        kind = 'Classifier, fine-tuned' if config.init_from else 'Classifier, trained from scratch'
    return f'{kind} with mae_jax. The encoder is a {encoder}.'


def _model(config: ConfigDict, sizes: Mapping[str, int], classes: int | None) -> Rows:
    model, data = config.model, config.dataset
    encoder, (height, width) = make_architecture(model), image_size(config)
    patch = encoder['patch_size']
    rows = {'encoder': 'width {width}, depth {depth}, {heads} heads'.format(**encoder)}
    if config.task == 'pretrain':
        rows |= {
            'decoder': f'width {model.decoder_width}, depth {model.decoder_depth}, '
            f'{model.decoder_heads} heads',
            'masking': f'{config.mask.strategy}, {100 * config.mask.ratio:g}% hidden'
            + (', as mask tokens in the encoder' if model.encoder_mask_tokens else ''),
            'target': _target(config.target),
        }
    else:
        rows |= {'pooling': model.pool, 'classes': classes and f'{classes:,}'}
    counts = ', '.join(f'{name} {size:,}' for name, size in sizes.items())
    return rows | {
        'parameters': f'{sum(sizes.values()):,} ({counts})',
        'image size': f'{height} x {width}, patches of {patch} x {patch}',
        'channels': f'{data.channels}',
        'normalisation': f'(image / {data.scale:g} - mean) / std, mean {_numbers(data.mean)}, '
        f'std {_numbers(data.std)}',
    }


def _target(target: ConfigDict) -> str:
    more = {'pca': f', the largest {target.components}', 'token': f' by `{target.tokenizer}`'}
    everywhere = ', of all patches' if target.loss_on == 'all' else ''
    return f'`{target.name}`' + more.get(target.name, '') + everywhere


def _training(config: ConfigDict, step: int, examples: tuple[int, int], warmup_steps: int) -> Rows:
    optimizer = config.optimizer
    peak = optimizer.base_lr * config.batch_size / 256
    averaged = config.get('ema_decay')
    data = f'{config.dataset.name}, {examples[0]:,} examples, {examples[1]:,} held out'
    if (config.eval_examples or examples[1]) < examples[1]:
        data += f' (evaluation sees {config.eval_examples:,} of them)'
    return {
        'data': data,
        'started from': config.init_from and f'`{config.init_from}`',
        'length': f'{step:,} steps of {config.batch_size:,} images, '
        f'{step * config.batch_size / examples[0]:.1f} epochs',
        'optimiser': f'{optimizer.name}, weight decay {optimizer.weight_decay:g}',
        'learning rate': f'{peak:g} ({optimizer.base_lr:g} for a batch of 256), '
        f'{warmup_steps:,} steps of warm-up, then cosine to {optimizer.min_lr:g}',
        'layer decay': _number(optimizer.get('layer_decay')),
        'parameters kept': averaged and f'running average, decay {averaged:g}',
        'activations': config.model.dtype,
        'seed': f'{config.seed}',
    }


def _results(
    metrics: Sequence[Mapping[str, float | None]],
    accuracies: Sequence[Accuracies],
    best: tuple[int, float] | None,
) -> list[str]:
    last = {
        name: (line['step'], line[name])
        for line in metrics
        for name in MEASURES
        if line.get(name) is not None
    }
    rows = [(text, *last[name]) for name, text in MEASURES.items() if name in last]
    if best:
        rows.append(('held-out top-1 of the best checkpoint', *best))
    tables = []
    if rows:
        rows = [(text, f'{value:.4f}', f'{step:,}') for text, step, value in rows]
        tables.append(_grid(('', 'value', 'step'), rows))
    if accuracies:
        names = accuracies[0]
        rows = [(describe(n), *(f'{found[n]:.4f}' for found in accuracies)) for n in names]
        header = ('accuracy of the frozen encoder', 'untrained', 'pretrained')
        tables.append(_grid(header, rows))
    return tables


def _use(config: ConfigDict, path: str, best: tuple[int, float] | None) -> str:
    height, width = image_size(config)
    better = f'  # its last checkpoint; the best: {path}/checkpoints/{best[0]}' if best else ''
    shape = f'8, {height}, {width}, {config.dataset.channels}'
    imports = 'import numpy as np\n\nimport mae_jax'
    if config.task == 'pretrain':
        imports = 'import jax\n' + imports
        whole = (
            "output = model.apply({'params': params}, normalize(images), "
            "rngs={'mask': jax.random.key(0)})\n"
            'output.prediction, output.mask  # [B, N, P*P*C] and [B, N], True where hidden'
        )
    else:
        whole = "logits = model.apply({'params': params}, normalize(images))  # [B, classes]"
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
model, params = mae_jax.load(path)
{whole}
```

As one file, or with the names of Hugging Face:

    mae-jax convert {shlex.quote(path)} model.safetensors
    mae-jax convert {shlex.quote(path)} model_huggingface"""


def _table(rows: Rows) -> str:
    return _grid(('', ''), [(name, text) for name, text in rows.items() if text])


def _grid(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def _numbers(values: Sequence[float]) -> str:
    return ', '.join(f'{value:g}' for value in values)


def _number(value: float | None) -> str | None:
    return None if value is None else f'{value:g}'


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _read_metrics(path: epath.Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
