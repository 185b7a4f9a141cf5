"""What would make the result of a run worthless, in one sentence each, before and after it."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mae_jax.config.model import image_size, make_architecture
from mae_jax.config.recipe import peak_learning_rate, protocol_of
from mae_jax.errors import counted
from mae_jax.experiment.setup import Setup
from mae_jax.runtime.processes import say
from mae_jax.training.topology import by_slice, spans_slices

FEW_STEPS = 50
FAR = 10
"""Factor between learning rates that is worth a warning."""
FEW_IMAGES = 300
"""Held-out images below which the standard error of an accuracy is printed: 3 points or more."""
OWN_RULES = ('pretrain', 'classify', 'segment', 'detect')
"""Tasks whose learning rates `config/recipe.py` knows."""


def cautions(setup: Setup) -> Iterator[str]:
    """Yields what to change before a run is worth starting; nothing for a sound one."""
    config, length, examples = setup.config, setup.length, len(setup.source)
    if spans_slices(setup.mesh):
        size = max(map(len, by_slice(setup.mesh.devices.flat)))
        yield f'mesh.fsdp={config.mesh.fsdp} spans slices of {size} devices: steps will be slow.'
    if config.mode == 'eval':
        return
    if config.batch_size > examples:
        yield (
            f'batch_size={config.batch_size} is larger than the data set '
            f'({counted(examples, "image")}), which it then repeats within a step: choose a '
            'smaller one.'
        )
    if length.num_steps < FEW_STEPS:
        yield (
            f'a run of {counted(length.num_steps, "step")} is too short to learn much: raise '
            'num_epochs, or lower batch_size.'
        )
    if length.cut_warmup:
        yield (
            'the warm-up is longer than the run, and is cut to it; the learning rate never falls: '
            'lower optimizer.warmup_epochs.'
        )
    yield from far_learning_rate(setup)
    for split, source in (('training', setup.source), ('held-out', setup.held_out)):
        if config.task == 'classify':
            yield from empty_classes(split, source)
    if config.task == 'detect':
        yield from far_anchors(setup.source, image_size(config), config.model.anchor_sizes)


def far_learning_rate(setup: Setup) -> Iterator[str]:
    """Yields a sentence where the learning rate is far from the rule for the batch size."""
    config = setup.config
    fields = config.optimizer
    if config.task not in OWN_RULES or not fields.base_lr:
        return
    width = make_architecture(config.model)['width']
    peak = fields.base_lr * config.batch_size / 256
    rule = peak_learning_rate(protocol_of(config), config.batch_size, fields.name, width)
    if not 1 / FAR <= peak / rule <= FAR:
        factor, side = max(peak / rule, rule / peak), 'above' if peak > rule else 'below'
        yield (
            f'the learning rate {peak:.1e} (base_lr * batch_size / 256) is {factor:,.0f} times '
            f'{side} what suits batches of {config.batch_size}: optimizer.base_lr='
            f'{rule * 256 / config.batch_size:.2g} does.'
        )


def far_anchors(source: Any, size: tuple[int, int], anchors: Sequence[float]) -> Iterator[str]:
    """Yields a sentence where most boxes are far from the size of every anchor.

    Args:
      source: training data; without `boxes` nothing is known of them.
      size: height and width in pixels that images are resized to fit into.
      anchors: their sides in pixels.
    """
    boxes = np.asarray(getattr(source, 'boxes', ()))
    if not len(boxes):
        return
    scales = (np.array(size) / source.sizes).min(axis=1).repeat(np.diff(source.starts))
    side = np.median(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) * scales)
    smallest, largest = min(anchors), max(anchors)
    if not smallest / 2 <= side <= 2 * largest:
        height, width = size
        yield (
            f'in images of {height} x {width} boxes have about {side:.0f} pixels a side, and '
            f'anchors {smallest:g} to {largest:g}, which match few of them: choose another '
            'image_size, or other model.anchor_sizes.'
        )


def empty_classes(split: str, source: Any) -> Iterator[str]:
    """Yields a sentence where a class has no example; nothing where labels are not at hand."""
    labels, names = getattr(source, 'labels', None), source.class_names
    if labels is None or not source.num_classes:
        return
    labels = np.asarray(labels)
    counts = np.bincount(labels[labels >= 0], minlength=source.num_classes)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        listed = ', '.join(str(names[i]) if len(names) else str(i) for i in empty[:5])
        effect = 'cannot be learned' if split == 'training' else 'do not count in the accuracy'
        yield (
            f'{len(empty)} of {source.num_classes} classes have no {split} image and {effect}: '
            f'{listed}{", ..." if len(empty) > 5 else ""}.'
        )


def at_chance(top1: float, labels: Any, classes: int, examples: int) -> str | None:
    """Returns a sentence where an accuracy is what guessing reaches; None where it is above.

    Guessing names the commonest class of the held-out images. An accuracy counts as above it by
    two standard errors.

    Args:
      top1: accuracy on `examples` held-out images.
      labels: of the held-out images, or None where they are not at hand.
      classes: number of classes.
    """
    chance = 1 / classes
    if labels is not None and len(labels):
        chance = float(np.bincount(np.asarray(labels).clip(0)).max() / len(labels))
    if top1 > chance + 2 * math.sqrt(chance * (1 - chance) / max(examples, 1)):
        return None
    return (
        f'top-1 {top1:.4f} is no better than guessing ({chance:.4f}): nothing was learned that '
        'holds for other images. Look at the labels, the cautions above and the learning rate.'
    )


def standard_error(examples: int) -> str:
    """Returns a remark on an accuracy over few examples; '' where there are enough."""
    if examples >= FEW_IMAGES:
        return ''
    return f' (standard error up to {0.5 / math.sqrt(max(examples, 1)):.2f})'


def say_caution(sentence: str) -> None:
    """Prints a sentence in lines of at most 80 columns."""
    options = dict(subsequent_indent='  ', break_long_words=False, break_on_hyphens=False)
    say(textwrap.fill(f'caution: {sentence}', 80, **options))
