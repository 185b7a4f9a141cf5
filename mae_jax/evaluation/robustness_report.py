"""Reports robustness beside the paper's figures: a Markdown table, and error over severity."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mae_jax.data.transforms.corruptions import CORRUPTIONS, SEVERITIES
from mae_jax.errors import counted
from mae_jax.evaluation.robustness import (
    ALEXNET,
    IMAGENET_CLASSES,
    Counts,
    corruption_errors,
    mean_corruption_error,
    mean_errors,
)
from mae_jax.evaluation.robustness_sets import ALL, CLEAN, KINDS, MODELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report(NamedTuple):
    """The result of an evaluation.

    Attributes:
      kind: one of `KINDS`.
      model: path of the classifier.
      step: of its checkpoint, if it is known.
      counts: of each set, by its name.
      classes: of the images; None if it is not known.
    """

    kind: str
    model: str
    step: int | None
    counts: Mapping[str, Counts]
    classes: int | None = None

    @property
    def errors(self) -> dict[str, list[float]]:
        """The error of each corruption, in order of severity."""
        return {
            name: [self.counts[f'{name}/{severity}'].error for severity in SEVERITIES]
            for name in CORRUPTIONS
        }

    @property
    def title(self) -> str:
        """The set, the classifier and its step."""
        step = '' if self.step is None else f', step {self.step:,}'
        return f'{KINDS[self.kind].title}: {self.model}{step}'


def summarize(report: Report) -> dict[str, float]:
    """Returns shares by name.

    `top1` of a set without corruptions. `mce` and `mean_error` of ImageNet-C. Of one's own images
    `clean_error`, `mean_error` of the corrupted ones, and `loss`, the second less the first.
    """
    if ALL in report.counts:
        return {'top1': 1 - report.counts[ALL].error}
    means = mean_errors(report.errors).values()
    mean = sum(means) / len(means)
    if CLEAN not in report.counts:
        return {'mce': mean_corruption_error(report.errors), 'mean_error': mean}
    clean = report.counts[CLEAN].error
    return {'clean_error': clean, 'mean_error': mean, 'loss': mean - clean}


def format_table(report: Report) -> str:
    """Formats Markdown: what was measured in percent, and the paper's figures."""
    kind, values = KINDS[report.kind], summarize(report)
    images = counted(next(iter(report.counts.values())).images, 'image')
    if 'top1' in values:
        among = f' among its {kind.classes} classes' if kind.alone else ''
        body = [f'Top-1{among} in percent, {images}.', '']
        body += _beside_the_paper('top-1', values['top1'], kind.paper)
    elif 'mce' in values:
        body = _corruption_rows(report, images, ('AlexNet, mean', 'CE'))
        body += [
            '',
            "CE is the mean error over AlexNet's, and mCE the mean of all CE; less is better.",
            '',
            *_beside_the_paper('mCE', values['mce'], kind.paper),
        ]
        if report.classes not in (None, IMAGENET_CLASSES):
            body += [
                '',
                f'These images are of {counted(report.classes, "class")}: with the errors of '
                'AlexNet and the figures of the paper, which are of '
                f'{IMAGENET_CLASSES:,}, they are not comparable.',
            ]
    else:
        body = _corruption_rows(report, images, ('less clean',))
        body += [
            '',
            f'Error of the clean images: {_percent(values["clean_error"])}. Clean and corrupted '
            'ones are cropped at 224 pixels first, as those of ImageNet-C.',
        ]
    return '\n'.join((f'# {report.title}', '', *body)) + '\n'


def _corruption_rows(report: Report, images: str, further: tuple[str, ...]) -> list[str]:
    """Returns a table with a row for each corruption, and with `further` columns."""
    means, values = mean_errors(report.errors), summarize(report)
    if 'mce' in values:
        ces = corruption_errors(report.errors)
        cells = {name: (ALEXNET[name], ces[name]) for name in means}
        last = (sum(ALEXNET.values()) / len(ALEXNET), values['mce'])
    else:
        cells = {name: (mean - values['clean_error'],) for name, mean in means.items()}
        last = (values['loss'],)
    lines = [f'Error in percent at the severities 1 to 5, {images} at each.', '']
    lines += _header('corruption', *SEVERITIES, 'mean', *further)
    for name, errors in report.errors.items():
        lines.append(_row(name, *map(_percent, (*errors, means[name], *cells[name]))))
    blank = [''] * len(SEVERITIES)
    return [*lines, _row('mean', *blank, *map(_percent, (values['mean_error'], *last)))]


def _beside_the_paper(name: str, value: float, paper: Sequence[float]) -> list[str]:
    models = [f'the paper: {MODELS[0]}', *MODELS[1:]]
    return [*_header('', 'this model', *models), _row(name, _percent(value), *paper)]


def _header(*titles: object) -> list[str]:
    return [_row(*titles), f'|{"---|" * len(titles)}']


def _row(*cells: object) -> str:
    return f'| {" | ".join(map(str, cells))} |'


def _percent(share: float) -> str:
    return f'{100 * share:.1f}'


def draw_plot(report: Report) -> bytes | None:
    """Draws `make_figure` as a PNG; returns None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use('Agg')
    buffer = io.BytesIO()
    make_figure(report).savefig(buffer, dpi=110)
    return buffer.getvalue()


def make_figure(report: Report) -> 'Figure':
    """Draws a panel for each corruption: error over severity.

    A dashed line is the error of clean images, or for ImageNet-C AlexNet's mean error.
    """
    from matplotlib.figure import Figure

    values = summarize(report)
    figure = Figure(figsize=(10, 6.4), layout='constrained')
    panels = figure.subplots(3, 5, sharex=True, sharey=True)
    for panel, (name, errors) in zip(panels.flat, report.errors.items(), strict=True):
        level, label = values.get('clean_error'), 'clean images'
        if level is None:
            level, label = ALEXNET[name], 'AlexNet, mean over the severities'
        panel.axhline(100 * level, color='grey', linestyle='--', linewidth=1, label=label)
        percent = [100 * error for error in errors]
        panel.plot(SEVERITIES, percent, 'o-', color='C0', markersize=4, label='this model')
        panel.set_title(name.replace('_', ' '), fontsize=10)
        panel.grid(color='lightgrey', linewidth=0.5)
    panels[0, 0].set(ylim=(0, 100), xticks=SEVERITIES)
    figure.supxlabel('severity')
    figure.supylabel('error in %')
    figure.suptitle(f'{report.title}\n{_subtitle(report)}', fontsize=10)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc='outside lower right', ncols=2, frameon=False)
    return figure


def _subtitle(report: Report) -> str:
    """Returns the summary in a line, for ImageNet-C with the paper's figures."""
    values = summarize(report)
    if 'mce' in values:
        paper = zip(MODELS[:3], KINDS[report.kind].paper, strict=False)
        listed = ', '.join(f'{model} {figure}' for model, figure in paper)
        return f'mCE {_percent(values["mce"])} (the paper: {listed})'
    return (
        f'mean error {_percent(values["mean_error"])}%, {_percent(values["loss"])} points above '
        'that of the clean images'
    )
