"""k-NN of a frozen encoder by the real command, and the probe that watches pretraining."""

import json

import numpy as np
import pytest
from helpers.tiny_runs import flat, make_image_folder, metrics, pretraining

from configs import knn
from mae_jax.errors import UserError
from mae_jax.experiment.run import run


def probing(pretraining_run, **fields):
    config = knn.get_config()
    config.init_from = str(pretraining_run)
    config.update_from_flattened_dict(
        {'batch_size': 64, 'knn.shots': (2,), 'model.dtype': 'float32'} | fields
    )
    return config


@pytest.mark.slow
def test_knn_is_evaluated_by_the_command_and_kept(command, pretrained, tmp_path):
    arguments = (
        '--config=configs/knn.py',
        f'--config.init_from={pretrained[0]}',
        '--config.batch_size=100',  # the last batch is not full
        '--config.dataset.eval_crop_share=1.0',
        '--config.knn.shots=(3,)',
        '--config.knn.linear=ridge',
        '--config.model.dtype=float32',
        f'--workdir={tmp_path}',
    )
    status, output = command(*arguments)
    assert status == 0, output
    (line,) = (tmp_path / 'results.jsonl').read_text().splitlines()
    actual = json.loads(line)
    assert {'init_from': str(pretrained[0]), 'step': 4, 'pool': 'mean'}.items() <= actual.items()
    assert '360 held-out images' in output
    for name, message in (
        ('knn', 'k-NN'),
        ('linear', 'linear probe'),
        ('3_shot', 'linear probe, 3 labels a class'),
    ):
        # Even four steps are enough to tell many of the ten digits apart.
        assert 0.3 < actual[name] <= 1
        assert f'  {message:<40} {actual[name]:.4f}' in output

    again = probing(
        pretrained[0],
        **{'knn.linear': 'ridge', 'knn.shots': (3,), 'dataset.eval_crop_share': 1.0},
    )
    run(again, tmp_path)  # on eight devices, in batches of another size
    lines = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    assert len(lines) == 2
    for name in ('knn', 'linear', '3_shot'):
        assert lines[1][name] == pytest.approx(lines[0][name], abs=2 / 360)


def test_a_fine_tuned_encoder_without_a_final_norm_is_evaluated(fine_tuned, tmp_path):
    actual = run(probing(fine_tuned[0], **{'knn.linear': 'ridge'}), tmp_path)
    assert 0.3 < actual['knn'] <= 1


def test_positions_are_resized_for_another_image_size(pretrained, tmp_path, capsys):
    fields = {'image_size': (12, 12), 'knn.linear': 'ridge'}
    actual = run(probing(pretrained[0], **fields), tmp_path)
    assert 'positions resized from 4 x 4 to 6 x 6 patches' in capsys.readouterr().out
    assert 0.3 < actual['knn'] <= 1


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'model.width': 32}, r'model\.width: 16 there, 32 here'),
        ({'model.depth': 1}, r'model\.depth: 2 there, 1 here'),
        ({'model.patch_size': 4}, r'encoder/patch_embed/kernel: \(4, 16\) there, \(16, 16\) here'),
        ({'model.heads': 2}, r'model\.heads: 4 there, 2 here'),
        ({'knn.pool': 'max'}, r"pool='max' is unknown"),
        ({'knn.linear': 'svm'}, r"linear='svm' is unknown"),
        ({'knn.neighbours': 5000}, r'5000 neighbours of 1437 examples'),
        ({'init_from': '/nowhere'}, r'/nowhere is neither a work directory'),
        ({'init_from': ''}, r'--config\.init_from'),
    ],
)
def test_what_cannot_be_probed_is_refused(pretrained, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        run(probing(pretrained[0], **fields), tmp_path)


def test_images_without_labels_cannot_be_probed(pretrained, tmp_path):
    images = make_image_folder(tmp_path / 'images', '')
    fields = {'dataset.name': 'folder', 'dataset.path': str(images)}
    with pytest.raises(UserError, match='labels, and these images have none'):
        run(probing(pretrained[0], batch_size=16, **fields), tmp_path / 'run')
    watched = {'online_probe.every_epochs': 1.0, 'num_steps': 1, 'batch_size': 8}
    with pytest.raises(UserError, match=r'labels, .* have none.*online_probe\.every_epochs=0'):
        run(pretraining(**fields, **watched), tmp_path / 'watched')


@pytest.mark.slow
def test_watching_a_pretraining_run_leaves_no_trace_in_it(pretrained, tmp_path):
    watched = {'online_probe.every_epochs': 2 / 90, 'online_probe.share': 0.3}
    state = run(pretraining(**watched), tmp_path)
    for name, value in flat(pretrained[1].params).items():
        np.testing.assert_array_equal(value, flat(state.params)[name], err_msg=name)
    lines = metrics(tmp_path)
    probes = [line for line in lines if 'probe/knn' in line]
    assert [line['step'] for line in probes] == [2, 4]
    for line in probes:
        assert line.keys() == {'step', 'probe/knn', 'probe/linear'}
        assert 0.3 < line['probe/knn'] <= 1 and 0.3 < line['probe/linear'] <= 1
    assert [line for line in lines if line not in probes] == metrics(pretrained[0])
    assert any('loss' in line for line in metrics(pretrained[0]))


@pytest.mark.parametrize('share', [0.0, 1.5])
def test_the_probed_share_is_a_share(tmp_path, share):
    config = pretraining(**{'online_probe.every_epochs': 1.0, 'online_probe.share': share})
    with pytest.raises(UserError, match=rf'online_probe\.share={share}'):
        run(config, tmp_path)
