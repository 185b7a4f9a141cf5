"""The model card agrees with config.json and metrics.jsonl, and its code loads the model."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import yaml
from helpers.tiny_runs import metrics, pretraining

import mae_jax
from mae_jax.checkpoints.find import read_meta
from mae_jax.checkpoints.integrity import write_checksums
from mae_jax.experiment.model_card import model_card
from mae_jax.experiment.run import run
from mae_jax.training.task import Card


def read(workdir):
    """The card's text, and its tables as name -> the cells beside it."""
    card = (workdir / 'model_card.md').read_text()
    rows = [line.strip('| ').split(' | ') for line in card.splitlines() if line.startswith('| ')]
    return card, {name: cells for name, *cells in rows}


def of(workdir):
    config = json.loads((workdir / 'config.json').read_text())
    return config, {name: line for line in metrics(workdir) for name in line if name != 'step'}


def load_by(card):
    """What the card's Python block leaves behind."""
    (block,) = re.findall('```python\n(.*?)```', card, re.DOTALL)
    names = {}
    exec(block, names)
    return names


def test_card_of_pretraining_says_what_config_and_metrics_say(pretrained):
    workdir, state = pretrained
    card, rows = read(workdir)
    config, last = of(workdir)
    model, data = config['model'], config['dataset']
    assert f'\n---\n\n# {workdir.name}\n\nMasked autoencoder' in card
    assert rows['encoder'] == [f'width {model["width"]}, depth {model["depth"]}, 4 heads']
    assert rows['decoder'] == ['width 16, depth 1, 4 heads']
    assert rows['masking'] == ['random, 50% hidden'] and config['mask']['ratio'] == 0.5
    assert rows['target'] == ['`pixel`']
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(state.params))
    assert rows['parameters'][0].startswith(f'{count:,} (')
    assert rows['image size'] == ['8 x 8, patches of 2 x 2']
    assert f'mean {data["mean"][0]}, std {data["std"][0]}' in rows['normalisation'][0]
    assert rows['data'] == ['digits, 1,437 examples, 360 held out (evaluation sees 32 of them)']
    assert rows['length'] == [f'4 steps of {config["batch_size"]} images, 0.0 epochs']
    peak = config['optimizer']['base_lr'] * config['batch_size'] / 256
    assert float(rows['learning rate'][0].split()[0]) == pytest.approx(peak, rel=1e-5)
    assert rows['seed'] == [str(config['seed'])]
    for name, measure in (
        ('training loss, mean since the log line before', 'loss'),
        ('held-out loss', 'eval/loss'),
    ):
        assert rows[name] == [f'{last[measure][measure]:.4f}', str(last[measure]['step'])]
    software = f'mae_jax {mae_jax.__version__}, jax {jax.__version__}, flax '
    assert rows['last start'][0].startswith(software)
    assert re.fullmatch(r'(\d+m)?\d+s, evaluation included', rows['training time'][0])


def test_card_leaves_out_what_is_not_known(pretrained):
    card, rows = read(pretrained[0])
    for unknown in ('top-1', 'frozen encoder', 'best', 'started from', 'average', 'None'):
        assert unknown not in card
    assert 'layer decay' not in rows


def test_card_of_fine_tuning_states_accuracy_and_the_best_checkpoint(fine_tuned):
    workdir, _, config = fine_tuned
    card, rows = read(workdir)
    _, last = of(workdir)
    assert 'Classifier, fine-tuned with mae_jax' in card
    assert rows['classes'] == ['10']
    assert rows['started from'] == [f'`{config.init_from}`']
    assert rows['parameters kept'] == ['running average, decay 0.5']
    assert rows['held-out top-1'] == [f'{last["eval/top1"]["eval/top1"]:.4f}', '6']
    scores = {line['step']: line['eval/top1'] for line in metrics(workdir) if 'eval/top1' in line}
    top1, step = rows['held-out top-1 of the best checkpoint']
    assert top1 == f'{max(scores.values()):.4f}' == f'{scores[int(step)]:.4f}'
    assert re.search(rf'the best: /\S+/run/checkpoints/{step}\n', card)


@pytest.mark.slow
def test_python_of_a_card_loads_the_encoder_and_the_whole(pretrained):
    names = load_by(read(pretrained[0])[0])
    assert names['features'].shape == (8, 16)
    assert names['output'].prediction.shape == (8, 16, 4)
    trained = pretrained[1].params
    jax.tree.map(np.testing.assert_array_equal, names['params'], jax.device_get(trained))


def test_python_of_a_classifiers_card_gives_logits(fine_tuned):
    assert load_by(read(fine_tuned[0])[0])['logits'].shape == (8, 10)


@pytest.mark.slow
def test_probes_of_a_finished_run_are_added_to_its_card(pretrained, tmp_path, capsys):
    workdir = shutil.copytree(pretrained[0], tmp_path / 'run')
    _, before = read(workdir)
    run(pretraining(probe_at_end=True), workdir)
    _, rows = read(workdir)
    assert before.items() <= rows.items()
    printed = dict(
        re.findall(r'^  (linear probe|k-NN) +(\d.\d+ +\d.\d+)$', capsys.readouterr().out, re.M)
    )
    for name, values in printed.items():
        assert [f'{float(cell):.3f}' for cell in rows[name]] == values.split()
    assert len(printed) == 2


@pytest.mark.slow
def test_card_that_cannot_be_written_ends_no_finished_run(tmp_path, capsys):
    workdir = tmp_path / 'run'
    (workdir / 'model_card.md').mkdir(parents=True)
    run(pretraining(num_steps=1), workdir)
    assert 'model_card.md cannot be written (Is a directory)' in capsys.readouterr().out


def test_losses_that_were_not_finite_are_passed_over(pretrained):
    config = mae_jax.interop.trained.read_config(pretrained[0])
    card = model_card(
        config,
        Card('Masked autoencoder, pretrained', {}, 'model'),
        path='runs/a run',
        step=2,
        examples=(100, 10),
        warmup_steps=0,
        sizes={'encoder': 1},
        metrics=[{'step': 1, 'loss': 0.25}, {'step': 2, 'loss': None}],
        machine='',
    )
    assert '| 0.2500 | 1 |' in card
    assert "mae-jax convert 'runs/a run' model.safetensors" in card


def test_header_is_the_yaml_that_the_hub_reads(fine_tuned):
    card, rows = read(fine_tuned[0])
    header = yaml.safe_load(card.split('---\n')[1])
    assert header['library_name'] == 'mae_jax'
    assert header['pipeline_tag'] == 'image-classification'
    assert 'license' not in header and '\n# license:' in card  # its owner chooses
    assert {'jax', 'flax', 'masked-autoencoder'} <= set(header['tags'])
    (model,) = header['model-index']
    assert model['name'] == fine_tuned[0].name
    (result,) = model['results']
    assert result['dataset']['name'] == 'digits'
    values = {metric['name']: f'{metric["value"]:.4f}' for metric in result['metrics']}
    assert values == {name: rows[name][0] for name in values}
    assert {metric['type'] for metric in result['metrics']} >= {'accuracy', 'loss'}


def test_training_time_is_that_of_all_starts(tmp_path):
    config = pretraining(num_steps=2, checkpoint_every_steps=1, keep_last=9)
    run(config, tmp_path)
    first, last = (read_meta(tmp_path / f'checkpoints/{step}') for step in (1, 2))
    assert 0 < first['train_seconds'] <= last['train_seconds']
    shutil.rmtree(tmp_path / 'checkpoints/2')
    meta = tmp_path / 'checkpoints/1/meta/metadata'
    meta.write_text(json.dumps(first | {'train_seconds': 7200.0}))
    write_checksums(tmp_path / 'checkpoints/1')
    run(config, tmp_path)
    assert read(tmp_path)[1]['training time'][0].startswith('2h00m')
