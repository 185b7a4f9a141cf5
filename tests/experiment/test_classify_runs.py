"""Classification runs as a whole: what learns, what stays, what is kept, what is refused."""

import csv
import re
import shutil

import jax
import numpy as np
import pytest
from helpers.tiny_runs import (
    PLAIN,
    SIZES,
    classifying,
    evaluations,
    flat,
    make_image_folder,
    metrics,
    start,
)
from sklearn.datasets import load_digits

from configs import finetune, linprobe, partial, scratch_large
from mae_jax.errors import UserError
from mae_jax.experiment.run import run


@pytest.fixture(scope='module')
def probed(pretrained, run_once):
    """Six steps of the paper's linear probe: (directory, state, config)."""
    config = classifying(linprobe.paper, pretrained[0], {'optimizer.base_lr': 100.0})
    return run_once('probed', config)


NO_NORM = {'model.pool': 'mean', 'model.batch_norm': False}


@pytest.fixture(scope='module')
def restless(pretrained, run_once):
    """A probe on cached features whose best step, 7 of 12, is not one at which it saves.

    Its learning rate rises until weight decay turns the signs of the weights around.
    """
    fields = NO_NORM | {
        'cache_features': True,
        'batch_size': 64,
        'num_steps': 12,
        'eval_every_steps': 1,
        'checkpoint_every_steps': 5,
        'keep_last': 1,
        'optimizer.name': 'adamw',
        'optimizer.base_lr': 0.4,
        'optimizer.min_lr': 1.0,
        'optimizer.weight_decay': 2.5,
    }
    config = classifying(linprobe.get_config, pretrained[0], fields)
    return run_once('restless', config)


@pytest.fixture
def copy(tmp_path):
    """copy((directory, ...)) -> a copy of it to write to."""
    return lambda made: shutil.copytree(made[0], tmp_path / 'copy')


def assert_equal(a, b):
    """Every bit of two states."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def changed(before, after) -> set[str]:
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


def moments(opt_state) -> int:
    """How many numbers an optimiser remembers, beside the steps it counts."""
    return sum(leaf.size for leaf in jax.tree.leaves(opt_state) if leaf.ndim)


def sizes(params, names) -> int:
    return sum(value.size for name, value in flat(params).items() if name in names)


def test_fine_tuning_moves_every_parameter_the_positions_too(fine_tuned, pretrained, tmp_path):
    _, state, _ = fine_tuned
    before = start(classifying(finetune.get_config, pretrained[0]), tmp_path)
    assert changed(before.params, state.params) == flat(state.params).keys()
    assert changed(state.params, state.ema) == flat(state.params).keys()
    assert moments(state.opt_state) == 2 * sizes(state.params, flat(state.params))


def test_a_linear_probe_moves_the_head_and_the_running_statistics_alone(
    probed, pretrained, tmp_path
):
    _, state, config = probed
    before = start(config, tmp_path)
    assert changed(before.params, state.params) == {'head/kernel', 'head/bias'}
    assert len(changed(before.model_state, state.model_state)) == 2
    assert moments(state.opt_state) == 16 * 10 + 10  # the momentum of LARS


@pytest.mark.slow
@pytest.mark.parametrize(
    ('trained', 'learning'),
    [
        pytest.param('0', r'fc_norm/|head/', marks=pytest.mark.slow),
        ('0.5', r'fc_norm/|head/|encoder/blocks/block_1/mlp/'),
        pytest.param('1', r'fc_norm/|head/|encoder/blocks/block_1/', marks=pytest.mark.slow),
    ],
)
def test_partial_fine_tuning_moves_the_last_blocks_and_what_follows(
    pretrained, tmp_path, trained, learning
):
    fields = PLAIN | {'trained': trained, 'num_steps': 2}
    config = classifying(partial.get_config, pretrained[0], fields)
    before = start(config, tmp_path / 'before')
    after = run(config, tmp_path / 'run')
    expected = {name for name in flat(before.params) if re.match(learning, name)}
    assert changed(before.params, after.params) == expected
    assert moments(after.opt_state) == 2 * sizes(after.params, expected)


def test_a_finished_run_is_reported_and_changes_nothing(fine_tuned, copy, capsys):
    workdir = copy(fine_tuned)
    again = run(fine_tuned[2], workdir)
    message = capsys.readouterr().out
    assert 'resuming at step 6 of 6' in message and 'finished at step 6 of 6' in message
    assert 'compiling' not in message
    assert_equal(fine_tuned[1], again)
    for name in ('metrics.jsonl', 'per_class.csv', 'config.json'):
        assert (workdir / name).read_text() == (fine_tuned[0] / name).read_text()


@pytest.mark.parametrize(
    'made',
    [
        pytest.param('fine_tuned', marks=pytest.mark.slow),
        'probed',
        pytest.param('restless', marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(made, request, copy, capsys):
    made = request.getfixturevalue(made)
    workdir = copy(made)
    kept = sorted((workdir / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(kept[-1])
    again = run(made[2], workdir)
    assert f'resuming at step {kept[-2].name} of' in capsys.readouterr().out
    assert_equal(made[1], again)
    assert metrics(workdir) == metrics(made[0])
    assert {path.name for path in kept} == {p.name for p in (workdir / 'checkpoints').iterdir()}


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_beside_the_latest(restless, capsys):
    workdir, _, config = restless
    accuracy = {step: line['eval/top1'] for step, line in evaluations(workdir).items()}
    assert sorted(accuracy) == list(range(1, 13))
    best = max(accuracy, key=lambda step: (accuracy[step], step))
    assert {int(p.name) for p in (workdir / 'checkpoints').iterdir()} == {best, 12}
    assert best % 5 and best != 12, 'this run tests nothing: make it another one'
    run(config, workdir)
    message = f'best checkpoint: {workdir}/checkpoints/{best} (top-1 {accuracy[best]:.4f})'
    assert message in capsys.readouterr().out


def evaluated(output: str) -> dict[str, str]:
    (line,) = re.findall(r'360 held-out images: (\S+) top-1, (\S+) top-5, loss (\S+)', output)
    return dict(zip(('eval/top1', 'eval/top5', 'eval/loss'), line, strict=True))


def last_evaluation(workdir) -> dict[str, str]:
    line = list(evaluations(workdir).values())[-1]
    return {name: f'{value:.4f}' for name, value in line.items() if name != 'step'}


def test_evaluation_gives_the_runs_own_numbers(fine_tuned, copy, tmp_path, capsys):
    workdir, config = copy(fine_tuned), fine_tuned[2].copy_and_resolve_references()
    config.mode = 'eval'
    run(config, workdir)
    assert evaluated(capsys.readouterr().out) == last_evaluation(fine_tuned[0])
    elsewhere = classifying(finetune.get_config, fine_tuned[0], {'mode': 'eval'})
    run(elsewhere, tmp_path / 'elsewhere')
    assert evaluated(capsys.readouterr().out) == last_evaluation(fine_tuned[0])


def test_features_that_are_cached_classify_as_the_images_do(restless, tmp_path, capsys):
    images = classifying(linprobe.get_config, restless[0], NO_NORM | {'mode': 'eval'})
    run(images, tmp_path)
    assert evaluated(capsys.readouterr().out) == last_evaluation(restless[0])


def test_pretraining_alone_cannot_be_evaluated(pretrained, tmp_path):
    config = classifying(finetune.get_config, pretrained[0], {'mode': 'eval'})
    with pytest.raises(UserError, match=r'has no trained .*head/kernel.*fine-tune it first'):
        run(config, tmp_path)
    config = classifying(finetune.get_config, None, SIZES | {'mode': 'eval'})
    with pytest.raises(UserError, match=r'holds no checkpoint to evaluate'):
        run(config, tmp_path / 'empty')


def test_accuracies_of_the_classes_average_to_the_whole(fine_tuned):
    with (fine_tuned[0] / 'per_class.csv').open() as file:
        rows = list(csv.DictReader(file))
    counts = {row['class']: int(row['images']) for row in rows}
    held_out = np.random.default_rng(0).permutation(1797)[1437:]
    expected = np.bincount(load_digits().target[held_out])
    assert counts == {str(digit): count for digit, count in enumerate(expected)}
    accuracy = [float(row['top1']) for row in rows]
    assert accuracy == sorted(accuracy)
    mean = np.average(accuracy, weights=[counts[row['class']] for row in rows])
    assert f'{mean:.3f}' == f'{float(last_evaluation(fine_tuned[0])["eval/top1"]):.3f}'


@pytest.mark.parametrize('made', [pytest.param('fine_tuned', marks=pytest.mark.slow), 'probed'])
def test_micro_batches_make_no_difference(made, request, pretrained, tmp_path):
    _, state, config = request.getfixturevalue(made)
    config = config.copy_and_resolve_references()
    config.init_from = str(pretrained[0])
    config.optimizer.accumulate = 2
    config.per_class = False
    config.eval_every_steps = 0
    other = run(config, tmp_path)
    for part in ('params', 'model_state', 'ema'):
        a, b = (flat(getattr(s, part) or {}) for s in (state, other))
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=2e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ('recipe', 'fields', 'message'),
    [
        (partial, {'trained': '7'}, r'trained=7 blocks, but the model has 2'),
        (partial, {'trained': 'encoder'}, r"trained='encoder' is unknown"),
        (partial, {'trained': '1.5'}, r"trained='1\.5' is unknown"),
        (partial, {'trained': '-1'}, r"trained='-1' is unknown"),
        (linprobe, {'trained': '1', 'cache_features': True}, r"cache_features.*trained='1'"),
        (linprobe, {'trained': 'all', 'cache_features': True}, r"cache_features.*trained='all'"),
        (finetune, {'num_classes': 7}, r'num_classes=7, but digits has 10 classes'),
        (finetune, {'optimizer.name': 'sgd'}, r"optimizer\.name='sgd' is unknown"),
        (finetune, {'optimizer.layer_decay': 0.0}, r'optimizer\.layer_decay=0'),
        (finetune, {'optimizer.layer_decay': 1.2}, r'optimizer\.layer_decay=1\.2'),
        (finetune, {'model.pool': 'max'}, r"model\.pool='max' is unknown"),
        (finetune, {'model.drop_path': 1.0}, r'model\.drop_path=1'),
        (finetune, {'label_smoothing': -0.1}, r'label_smoothing=-0\.1'),
        (finetune, {'mix.mixup': -1.0}, r'mix\.mixup=-1'),
        (finetune, {'dataset.erase': 2.0}, r'dataset\.erase=2'),
        (finetune, {'dataset.augment': 'rand-9'}, r'rand-9'),
        (finetune, {'dataset.crop': 'centre'}, r"dataset\.crop='centre'"),
        (scratch_large, {'ema_decay': 1.5}, r'ema_decay=1\.5'),
    ],
)
def test_a_field_that_cannot_work_is_named(pretrained, tmp_path, recipe, fields, message):
    make = finetune.get_config
    if recipe is scratch_large:
        make = lambda: scratch_large.make_scratch(finetune.get_config())  # noqa: E731
    elif recipe is not finetune:
        make = recipe.get_config
    refuse(classifying(make, pretrained[0], fields), tmp_path, message)


def refuse(config, workdir, message):
    with pytest.raises(UserError, match=message) as caught:
        run(config, workdir)
    assert '\n' not in str(caught.value)


def test_randaugment_of_four_bands_is_refused(tmp_path):
    fields = SIZES | {'dataset.name': 'synthetic', 'dataset.synthetic_examples': 64}
    fields |= {'dataset.channels': 4, 'dataset.mean': (0.5,) * 4, 'dataset.std': (0.5,) * 4}
    message = r"dataset\.augment='rand-m9-mstd0\.5-inc1' .* RGB .*4 channels.*dataset\.augment=''"
    refuse(classifying(finetune.paper, None, fields), tmp_path, message)


def folder_config(pretrained, root, **fields):
    fields = {'dataset.name': 'folder', 'dataset.path': str(root)} | fields
    return classifying(finetune.get_config, pretrained[0], fields)


def test_images_without_labels_are_refused(pretrained, tmp_path):
    images = make_image_folder(tmp_path / 'images', '')
    refuse(folder_config(pretrained, images), tmp_path / 'run', r'no labels.*train/<class>/')


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        ('', r'3 classes and dataset\.eval_split has no labels'),
        ('abcd', r'3 classes and dataset\.eval_split 4.*only in evaluation: d'),
        ('bc', r'3 classes and dataset\.eval_split 2.*only in training: a'),
    ],
)
def test_an_evaluation_split_of_other_classes_is_refused(pretrained, tmp_path, classes, message):
    images = tmp_path / 'images'
    make_image_folder(images / 'train', 'abc')
    make_image_folder(images / 'val', 'abc')
    make_image_folder(images / 'extra', classes)
    fields = PLAIN | {'trained': '0', 'num_steps': 1, 'eval_every_steps': 1}
    fields |= {'dataset.eval_split': 'extra'}
    refuse(folder_config(pretrained, images, **fields), tmp_path / 'run', message)


def test_an_unknown_transfer_set_is_one_sentence(command, tmp_path):
    status, output = command('--config=configs/transfer.py:imagenet', f'--workdir={tmp_path}')
    assert status == 1
    assert output.startswith('error: ') and len(output.strip().splitlines()) == 1
    assert 'transfer.py:imagenet is unknown: choose inaturalist2018, places365' in output
