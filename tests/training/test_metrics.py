import io
import json
import os
import re

import numpy as np
import pytest
from helpers.disks import files_no_larger_than, small_disk
from PIL import Image

from mae_jax.errors import UserError
from mae_jax.runtime.chips import peak_flops
from mae_jax.training.console import format_line, format_seconds, parameter_table
from mae_jax.training.metrics import MetricsWriter
from mae_jax.training.throughput import Throughput


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_writer(workdir, start_step=0, total_steps=100, **options):
    options = {'console': io.StringIO()} | options
    return MetricsWriter(
        workdir, start_step=start_step, total_steps=total_steps, steps_per_epoch=10, **options
    )


def lines_of(workdir):
    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    text = (workdir / 'metrics.jsonl').read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_scalars_are_a_json_line_each_with_the_step_first_and_there_at_once(tmp_path):
    with make_writer(tmp_path) as writer:
        writer.scalars(5, {'loss': 0.5, 'grad_norm': 2.0})
        assert (tmp_path / 'metrics.jsonl').read_text().startswith('{"step": 5, ')
        assert lines_of(tmp_path) == [{'step': 5, 'loss': 0.5, 'grad_norm': 2.0}]
        writer.scalars(6, {'eval/loss': 0.25})
    assert lines_of(tmp_path)[1] == {'step': 6, 'eval/loss': 0.25}


def test_what_is_not_finite_is_still_json(tmp_path):
    with make_writer(tmp_path) as writer:
        writer.scalars(1, {'loss': float('nan'), 'a': float('inf'), 'b': float('-inf'), 'c': 1.0})
    assert lines_of(tmp_path) == [{'step': 1, 'loss': None, 'a': None, 'b': None, 'c': 1.0}]


def test_a_resumed_run_takes_back_the_steps_it_will_do_again(tmp_path):
    with make_writer(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.scalars(step, {'loss': float(step)})
    with make_writer(tmp_path, start_step=20) as writer:
        assert [line['step'] for line in lines_of(tmp_path)] == [10, 20]
        writer.scalars(30, {'loss': -1.0})
    assert [line['loss'] for line in lines_of(tmp_path)] == [10.0, 20.0, -1.0]


@pytest.mark.parametrize('tail', ['{"step": 15, "lo', '{"step"', '\n', '{"other": 1}\n', '[]\n'])
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path, tail):
    with make_writer(tmp_path) as writer:
        writer.scalars(10, {'loss': 1.0})
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write(tail)
    with make_writer(tmp_path, start_step=20) as writer:
        writer.scalars(30, {'loss': 2.0})
    assert [line['step'] for line in lines_of(tmp_path)] == [10, 30]


def test_a_run_that_starts_over_leaves_no_line_of_the_one_before(tmp_path):
    with make_writer(tmp_path) as writer:
        writer.scalars(1, {'loss': 1.0})
    with make_writer(tmp_path):
        assert lines_of(tmp_path) == []


def test_a_picture_is_kept_twice(tmp_path):
    first, second = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    with make_writer(tmp_path) as writer:
        writer.image(10, 'reconstruction', first)
        writer.image(20, 'reconstruction', second)
    kept = sorted((tmp_path / 'images').iterdir())
    assert [path.name for path in kept] == ['latest.png', 'step_00000010.png', 'step_00000020.png']
    for path, expected in zip(kept, (second, first, second), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


def test_a_process_that_is_not_the_writer_writes_and_says_nothing(tmp_path):
    console = io.StringIO()
    with make_writer(tmp_path / 'run', is_writer=False, console=console) as writer:
        writer.scalars(1, {'loss': 1.0})
        writer.image(1, 'reconstruction', np.zeros((4, 4, 3), np.uint8))
        writer.progress(1)
        writer.say('hello')
    assert not os.path.exists(tmp_path / 'run')
    assert console.getvalue() == ''


def test_without_a_terminal_there_are_plain_lines_alone(tmp_path):
    console = io.StringIO()
    with make_writer(tmp_path, console=console) as writer:
        writer.progress(1)
        writer.scalars(10, {'loss': 0.5})
        writer.say('done')
    assert console.getvalue() == 'step  10/100  epoch 1.0  loss 0.5000\ndone\n'


def test_on_a_terminal_a_bar_moves_and_the_lines_stand_above_it(tmp_path):
    console = Terminal()
    with make_writer(tmp_path, console=console, start_step=20) as writer:
        for step in range(21, 51):
            writer.progress(step)
        writer.scalars(50, {'loss': 0.5})
    text = console.getvalue()
    assert '\r' in text
    assert '20/100' in text
    assert 'step  50/100  epoch 5.0  loss 0.5000\n' in text
    assert '|' not in text.split('\r')[-1]  # the bar is wiped off in the end


def test_a_line_of_a_long_run_fits_the_terminal():
    scalars = {
        'loss': 0.43211,
        'learning_rate': 1.2e-4,
        'images_per_second': 1234.4,
        'images_per_second_per_device': 154.3,
        'input_wait': 0.012,
        'mfu': 0.431,
        'eta_seconds': 3725.0,
    }
    line = format_line(1200, 9360, 12.82, scalars, width=120)
    assert line == (
        'step 1200/9360  epoch 12.8  loss 0.4321  lr 1.20e-04  1,234 img/s  (154/device)  wait 1%  '
        'mfu 43%  eta 1h02m'
    )
    line = format_line(1200, 9360, 12.82, scalars)
    assert line == ('step 1200/9360  loss 0.4321  1,234 img/s  wait 1%  mfu 43%  eta 1h02m')
    one_device = scalars | {'images_per_second_per_device': scalars['images_per_second']}
    assert 'device' not in format_line(1200, 9360, 12.82, one_device, width=120)
    longest = {'grad_norm': 1.25, 'images_per_second': 654_321.0, 'replaced_images': 12.0}
    scalars |= longest | {'images_per_second_per_device': 12_345.0, 'eta_seconds': 9e5}
    assert len(format_line(123_456, 499_200, 396.7, scalars, width=1000)) <= 155
    assert len(format_line(123_456, 499_200, 396.7, scalars)) <= 80


def test_a_line_states_what_there_is_and_survives_what_is_not_finite():
    assert format_line(3, 10, 0.3, {}) == 'step  3/10  epoch 0.3'
    assert 'held-out loss 0.2500' in format_line(3, 10, 0.3, {'eval/loss': 0.25})
    assert 'loss nan' in format_line(3, 10, 0.3, {'loss': float('nan')})
    assert 'replaced 2' in format_line(3, 10, 0.3, {'replaced_images': 2.0})
    assert 'replaced' not in format_line(3, 10, 0.3, {'replaced_images': 0.0})


def test_the_line_of_a_segmenters_evaluation_fits_a_terminal():
    scalars = {'eval/loss': 1.25, 'eval/miou': 0.4567, 'eval/pixel_accuracy': 0.9}
    line = format_line(160_000, 160_000, 126.7, scalars)
    assert line.endswith('held-out loss 1.2500  mIoU 0.4567  pixel accuracy 0.9000')
    assert len(line) <= 80


@pytest.mark.parametrize(
    'seconds, text',
    [
        (0.4, '0s'),
        (59.6, '1m00s'),
        (185, '3m05s'),
        (3599.9, '1h00m'),
        (25_920, '7h12m'),
        (273_600, '3d04h'),
    ],
)
def test_times_are_reported_in_two_units(seconds, text):
    assert format_seconds(seconds) == text


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Device:
    def __init__(self, kind):
        self.device_kind = kind


def make_throughput(clock, kind='NVIDIA H100 80GB HBM3', devices=4):
    return Throughput(
        batch_size=32,
        flops_per_image=1e12,
        devices=[Device(kind)] * devices,
        total_steps=1000,
        clock=clock,
    )


def run_steps(throughput, clock, steps, seconds):
    for step in steps:
        clock.now += seconds
        throughput.step(step)


def test_rates_are_of_the_interval_and_leave_out_compilation_and_pauses():
    clock = Clock()
    throughput = make_throughput(clock)
    run_steps(throughput, clock, [1], 60.0)  # compiles
    with throughput.waiting():
        clock.now += 0.5
    run_steps(throughput, clock, range(2, 12), 0.45)
    with throughput.paused():
        clock.now += 1000.0
    rates = throughput.take(11)
    assert rates['images_per_second'] == pytest.approx(10 * 32 / 5.0)
    assert rates['images_per_second_per_device'] == pytest.approx(16.0)
    assert rates['input_wait'] == pytest.approx(0.1)
    assert rates['mfu'] == pytest.approx(64 * 1e12 / (4 * 989e12))
    run_steps(throughput, clock, range(12, 22), 1.0)  # nothing of the first interval is left
    rates = throughput.take(21)
    assert rates['images_per_second'] == pytest.approx(32.0)
    assert rates['input_wait'] == 0.0


def test_the_eta_counts_pauses_for_the_user_waits_for_them_too():
    clock = Clock()
    throughput = make_throughput(clock)
    run_steps(throughput, clock, [501], 60.0)  # resumed at 500
    run_steps(throughput, clock, range(502, 602), 1.0)
    with throughput.paused():
        clock.now += 100.0
    assert throughput.take(601)['eta_seconds'] == pytest.approx((1000 - 601) * 2.0)


def test_before_a_step_was_timed_there_are_no_rates():
    clock = Clock()
    throughput = make_throughput(clock)
    assert throughput.take(0) == {}
    run_steps(throughput, clock, [1], 60.0)
    assert throughput.take(1) == {}


@pytest.mark.parametrize(
    'kind, peak',
    [
        ('cpu', None),
        ('Quadro P6000', None),
        ('TPU v2', 22.5e12),
        ('TPU v3', 61.5e12),
        ('TPU v4', 275e12),
        ('TPU v5 lite', 197e12),
        ('TPU v5', 459e12),
        ('TPU v5p', 459e12),
        ('TPU v6 lite', 918e12),
        ('NVIDIA A100-SXM4-40GB', 312e12),
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H200', 989e12),
        ('NVIDIA L4', 121e12),
        ('NVIDIA L40S', 362e12),
    ],
)
def test_peaks_are_those_of_the_data_sheets(kind, peak):
    assert peak_flops(kind) == peak


def test_without_a_known_peak_there_is_no_mfu():
    clock = Clock()
    throughput = make_throughput(clock, kind='cpu')
    run_steps(throughput, clock, [1, 2], 1.0)
    rates = throughput.take(2)
    assert 'mfu' not in rates
    assert 'mfu' not in format_line(2, 10, 0.2, rates)


def test_the_parameter_table_folds_equal_blocks_and_adds_up():
    params = {
        'encoder': {
            'block_0': {'kernel': np.zeros((3, 4))},
            'block_1': {'kernel': np.zeros((3, 4))},
            'positions': np.zeros((5, 2)),
        }
    }
    table = parameter_table(params, lambda name: 'positions' not in name).splitlines()
    kernel, positions = (re.split(r' *\| *', line)[1:-1] for line in table[3:5])
    assert kernel == ['encoder/block_*/kernel', '3x4', '12', '2', '']
    assert positions == ['encoder/positions', '5x2', '10', '1', 'fixed']
    assert table[-1] == '34 parameters, 24 of them trained'


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='metrics cannot be written'):
        make_writer(tmp_path / 'file')


def test_a_metrics_file_that_cannot_be_cut_back_is_left_whole(tmp_path):
    with make_writer(tmp_path) as writer:
        for step in range(1, 101):
            writer.scalars(step, {'loss': 1.0})
    before = (tmp_path / 'metrics.jsonl').read_bytes()
    with files_no_larger_than(500), pytest.raises(UserError, match='make room'):
        make_writer(tmp_path, start_step=50)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before


def test_a_disk_that_fills_up_is_an_error_and_earlier_lines_stay(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    with small_disk(tmp_path, size='200k'):
        writer = make_writer(tmp_path)
        writer.scalars(1, {'loss': 1.0})
        writer.image(2, 'reconstruction', picture)
        with pytest.raises(UserError, match='No space left on device.*make room'):
            writer.flush()
        assert lines_of(tmp_path) == [{'step': 1, 'loss': 1.0}]
