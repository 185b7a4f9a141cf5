"""What the benchmark of detection reports from the evaluations of its runs."""

import json

import detection

BOX, MASK = detection.GOALS


def test_goals_are_reached_at_the_first_step_that_has_them():
    values = {
        500: {BOX: 0.79, MASK: 0.71},
        250: {BOX: 0.4, MASK: 0.2},
        750: {BOX: 0.81, MASK: 0.69},
        1000: {BOX: 0.85, MASK: 0.75},
    }
    assert detection.steps_to_goals(values) == {BOX: 750, MASK: 500}
    assert detection.steps_to_goals({250: values[250]}) == {BOX: None, MASK: None}


def test_a_row_is_of_the_mean_of_the_seeds():
    pretrained = [
        {250: {BOX: 0.7, MASK: 0.6}, 500: {BOX: 0.9, MASK: 0.7}},
        {250: {BOX: 1.0, MASK: 0.6}, 500: {BOX: 0.8, MASK: 0.75}},
    ]
    untrained = [{250: {BOX: 0.1, MASK: 0.1}, 500: {BOX: 0.5, MASK: 0.4}}]
    runs = {'pretrained': pretrained, 'untrained': untrained}
    lines = detection.format_table(runs, {'pretrained': 20.0, 'untrained': 20.0}, 1000).splitlines()
    assert lines[2] == '| pretrained | step 250 | step 500 | 10 | 0.850 | 0.725 |'
    assert lines[3] == '| untrained | - | - | - | 0.500 | 0.400 |'


def test_evaluations_are_read_from_the_lines_that_have_them(tmp_path):
    lines = [{'step': 5, 'loss': 1.0}, {'step': 10, 'eval/box_ap': 0.1, BOX: 0.3, MASK: 0.2}]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    assert detection.evaluations(tmp_path) == {10: {BOX: 0.3, MASK: 0.2}}


def test_the_time_of_a_resumed_run_includes_that_of_its_earlier_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(detection.subprocess, 'run', lambda *args, **options: None)
    (tmp_path / 'run.minutes').write_text('7.50\n')
    assert detection.train('detect', tmp_path / 'run', []) == 7.5
    assert detection.train('detect', tmp_path / 'other', []) == 0
