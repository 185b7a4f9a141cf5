"""The input benchmark runs, and its figures follow from the measured times."""

import importlib.util

import input_pipeline
import numpy as np
import pytest
from input_peers import Pipeline, Setting, crops_differ, reference
from photographs import link_photographs, make_photographs
from PIL import Image

TINY = ['--examples=16', '--width=64', '--height=48', '--image_size=16', '--batch_size=4']
TINY += ['--seconds=0.05', '--compared=4', '--repeats=1', '--cores=1']


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photographs')
    make_photographs(folder, 16, 64, 48)
    return Setting(str(folder), size=16, batch_size=4, cores=1, compared=4)


def rows_of(table: str) -> dict[str, list[str]]:
    lines = [line for line in table.splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines[1:]]
    return {name: numbers for name, *numbers in cells}


@pytest.mark.slow
def test_images_per_second_and_pixel_difference_are_printed(capsys):
    input_pipeline.main([*TINY, '--only', 'mae_jax'])
    ((name, (rate, _, _, pixels)),) = rows_of(capsys.readouterr().out).items()
    assert name == 'mae_jax' and float(rate) > 0
    assert float(pixels) == 0  # the exact path


@pytest.mark.slow
def test_every_installed_pipeline_is_measured(capsys):
    input_pipeline.main(TINY)
    rows = rows_of(capsys.readouterr().out)
    assert {'mae_jax', 'mae_jax, Pillow alone', 'mae_jax, worker processes'} <= rows.keys()
    if importlib.util.find_spec('torchvision'):
        assert rows['original'][2:] == ['1.00', '0.000']
    assert all(float(rate) > 0 for rate, *_ in rows.values())


def test_rate_excludes_the_start_of_the_stream(setting, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(input_pipeline.time, 'perf_counter', lambda: clock[0])

    def batches():
        for number in range(1000):
            clock[0] += 0.5 if number == 0 else 0.01  # workers start
            yield

    rate = input_pipeline.rate(Pipeline(batches, None), setting, seconds=0.3)
    assert rate == pytest.approx(setting.batch_size / 0.01)


def test_crop_shifted_by_a_pixel_is_reported_as_different(setting):
    def crop(data, box):
        return reference(data, box, setting.size)

    def shifted(data, box):
        left, top, width, height = box
        return reference(data, (left, top, width - 1, height), setting.size)

    assert crops_differ(setting, crop) == 0
    assert crops_differ(setting, shifted) > 1


def test_table_has_medians_and_their_ratios():
    measured = [
        input_pipeline.Measured('original', np.array([[90, 100, 400], [190, 180, 300]]), 0.0),
        input_pipeline.Measured('mae_jax', np.array([[250, 260, 240], [500, 500, 500]]), 0.01),
    ]
    rows = rows_of(input_pipeline.table(measured, [1, 2]))
    assert rows['original'] == ['100', '90 - 400', '190', '1.90', '1.00', '0.000']
    assert rows['mae_jax'] == ['250', '240 - 260', '500', '2.00', '2.50', '0.010']


def test_generated_files_are_as_large_as_photographs(tmp_path):
    make_photographs(tmp_path / 'made', 4)
    files = sorted((tmp_path / 'made').glob('train/*/*.jpg'))
    assert {Image.open(file).size for file in files} == {(500, 375)}
    assert np.mean([file.stat().st_size for file in files]) == pytest.approx(104e3, rel=0.1)
    link_photographs(tmp_path / 'made', tmp_path / 'linked', 2)
    linked = sorted((tmp_path / 'linked').glob('train/*/*.jpg'))
    assert [file.read_bytes() for file in linked] == [f.read_bytes() for f in (files[0], files[-1])]
