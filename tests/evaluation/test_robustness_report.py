"""The table and the plot have the numbers of the counts, beside the paper's."""

import numpy as np
import pytest
from helpers.robustness import SETS

from mae_jax.evaluation.robustness import ALEXNET, Counts
from mae_jax.evaluation.robustness_report import Report, draw_plot, format_table, make_figure


@pytest.fixture
def counts():
    """Of 1,000 images each: the s-th severity of the n-th corruption has 40 n + 10 s errors."""
    return {
        name: Counts(1000 - 40 * (number // 5) - 10 * (number % 5 + 1), 1000)
        for number, name in enumerate(SETS)
    }


def cells(table, first):
    (line,) = [line for line in table.splitlines() if line.startswith(f'| {first} |')]
    return line.strip('| ').split(' | ')[1:]


def test_imagenet_c_has_errors_ce_and_mce(counts):
    table = format_table(Report('imagenet_c', 'runs/a', 1234, counts))
    assert table.startswith('# ImageNet-C: runs/a, step 1,234\n') and '1,000 images' in table
    # By hand: shot_noise, the second, has 50 ... 90 errors of 1,000, AlexNet .894468.
    assert cells(table, 'shot_noise') == ['5.0', '6.0', '7.0', '8.0', '9.0', '7.0', '89.4', '7.8']
    ces = [(40 * n + 30) / 1000 / error for n, error in enumerate(ALEXNET.values())]
    assert cells(table, 'mean')[-1] == cells(table, 'mCE')[0] == f'{100 * np.mean(ces):.1f}'
    assert cells(table, 'mean')[-3] == '31.0'
    assert cells(table, 'mCE')[1:] == ['51.7', '41.8', '33.8', '36.8', '42.5']  # the paper's


@pytest.mark.parametrize('classes', [3, 1000])
def test_figures_of_other_numbers_of_classes_are_not_to_be_compared(counts, classes):
    table = format_table(Report('imagenet_c', 'runs/a', 1234, counts, classes))
    assert ('These images are of 3 classes: with the errors of AlexNet' in table) == (classes == 3)


def test_images_of_ones_own_have_the_loss_against_clean_ones(counts):
    report = Report('corruptions', 'model.safetensors', None, {'clean': Counts(970, 1000)} | counts)
    table = format_table(report)
    assert table.startswith('# Corrupted images: model.safetensors\n')
    assert cells(table, 'shot_noise')[-2:] == ['7.0', '4.0']
    assert cells(table, 'mean')[-2:] == ['31.0', '28.0']
    assert 'clean images: 3.0.' in table and 'the paper' not in table and 'AlexNet' not in table


@pytest.mark.parametrize(
    ('kind', 'paper'),
    [
        ('imagenet_a', ['35.9', '57.1', '68.2', '76.7', '35.8']),
        ('imagenet_r', ['48.3', '59.9', '64.4', '66.5', '48.7']),
        ('imagenet_sketch', ['34.5', '45.3', '49.6', '50.9', '36.0']),
    ],
)
def test_top1_stands_beside_the_papers(kind, paper):
    table = format_table(Report(kind, 'runs/a', 5, {'all': Counts(123, 400)}))
    assert cells(table, 'top-1') == ['30.8', *paper]
    assert ('among its 200 classes' in table) == (kind != 'imagenet_sketch')


def test_every_corruption_has_a_panel_with_its_errors(counts):
    pytest.importorskip('matplotlib')
    report = Report('corruptions', 'runs/a', 5, {'clean': Counts(970, 1000)} | counts)
    figure = make_figure(report)
    assert [panel.get_title().replace(' ', '_') for panel in figure.axes] == list(ALEXNET)
    for number, panel in enumerate(figure.axes):
        level, ours = panel.lines
        np.testing.assert_allclose(level.get_ydata(), 3)
        np.testing.assert_allclose(ours.get_xdata(), range(1, 6))
        np.testing.assert_allclose(ours.get_ydata(), 4 * number + np.arange(1, 6))
    assert '28.0 points above' in figure.get_suptitle()
    of_c = make_figure(Report('imagenet_c', 'runs/a', 5, counts))
    assert 'ViT-B 51.7, ViT-L 41.8, ViT-H 33.8' in of_c.get_suptitle()
    np.testing.assert_allclose(of_c.axes[1].lines[0].get_ydata(), 89.4468)
    assert draw_plot(report)[1:4] == b'PNG'


def test_without_matplotlib_there_is_no_plot(counts, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    assert draw_plot(Report('imagenet_c', 'runs/a', 5, counts)) is None
