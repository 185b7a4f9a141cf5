"""Several processes share the work of a checkpoint, and go on from the same one, or from none."""

import pytest
from helpers.checkpoint_scenes import SIZE, play

pytestmark = pytest.mark.slow
LARGE = 4 * SIZE
"""Bytes of the large array, nearly all of a checkpoint."""


@pytest.fixture(scope='module', params=[(2, 2), (4, 1)], ids=['two', 'four'])
def played(request, tmp_path_factory):
    """What each process returned, by scene."""
    processes, devices = request.param
    return play(tmp_path_factory.mktemp('scenes'), processes, devices)


def shown_by(played, scene):
    return [results[scene] for results in played]


def test_all_restore_to_the_bit_what_was_saved_with_the_meta_of_process_0(played):
    for results in shown_by(played, 'save_and_restore'):
        assert len(results) >= 2
        for result in results.values():
            assert result['step'] == 2 and result['meta'] == {'top1': 0.2, 'process': 0}


def test_each_process_reads_its_own_files_to_list_their_checksums(played):
    counts = [results['1']['saving'] for results in shown_by(played, 'save_and_restore')]
    assert max(counts) < 1.5 * LARGE / len(played)
    assert sum(counts) < 1.2 * LARGE


def test_replicated_arrays_are_read_once_and_once_more_to_be_verified(played):
    counts = [results['1']['restoring'] for results in shown_by(played, 'save_and_restore')]
    assert sum(counts) < 2.2 * LARGE
    assert max(counts[1:]) < 1.3 * LARGE / len(played)  # its share of the verification


def test_split_arrays_are_read_by_the_processes_that_hold_them(played):
    for results in shown_by(played, 'save_and_restore'):
        whole = max(results, key=int)
        assert results[whole]['restoring'] < 2.4 * LARGE / len(played)


def test_every_layout_is_restored_into_every_other_to_the_bit(played):
    for results in shown_by(played, 'other_layouts'):
        assert len(results) >= 2
        for name, result in results.items():
            assert result.get('step') == 2 and result['same'], (name, result)


def test_a_file_that_one_process_sees_later_is_waited_for(played):
    for results in shown_by(played, 'hidden'):
        for name, result in results.items():
            if name.endswith('True'):
                assert result.get('step') == 2 and result['same'], (name, result)
                assert result['best'] == [2, 0.2] and result['lines'] == []


def test_a_file_that_one_process_never_sees_ends_all_with_a_sentence(played):
    last = len(played) - 1
    for results in shown_by(played, 'hidden'):
        never = {name: each for name, each in results.items() if name.endswith('False')}
        assert never.pop('2/checksums.txt False')['step'] == 2  # process 0 alone reads it
        errors = {name: each['error'] for name, each in never.items()}
        assert len(errors) == 4
        for name, error in errors.items():
            assert f'process {last} on ' in error and 'share the storage' in error
            assert name.split(' ')[0].rpartition('/')[2] in error


def test_damage_found_by_any_process_takes_all_to_the_checkpoint_before(played):
    for process, results in enumerate(shown_by(played, 'damaged')):
        for damaged, result in results.items():
            assert result['step'] == 1 and result['same']
            if process == 0:
                assert f'ocdbt.process_{damaged}' in result['lines'][0]
                assert 'another checksum' in result['lines'][0] and len(result['lines']) == 2
            else:
                assert result['lines'] == []


def test_a_slow_disk_of_one_delays_the_checkpoint_and_not_the_training_of_the_others(played):
    for result in shown_by(played, 'slow_disk'):
        assert result['blocked'] < 4 and result['early'] == []
        assert result['took'] >= 5
        assert result['step'] == 1 and result['same']


def test_the_clock_of_process_0_says_when_to_save(played):
    first, *others = shown_by(played, 'clocks')
    assert first['due'] == [30, 60, 90]
    assert all(other == first for other in others)


def test_the_scores_of_process_0_say_which_checkpoint_is_best(played):
    for result in shown_by(played, 'scores'):
        assert result == {
            'is_best': [True, True, False, False],
            'kept': [2, 4],
            'best': [2, 0.8],
        }


def test_numpy_arrays_are_laid_out_without_a_comparison_on_all_processes(played):
    for process, result in enumerate(shown_by(played, 'laid_out')):
        assert all(values == [process] * 8 for values in result['values'])
