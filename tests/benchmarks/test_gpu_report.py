"""The report about a GPU has every section, also of those that fail; kernels add up by name."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import gpu_report
import kernels
import pytest
from gpu_report import ROOT, Failed, Section
from helpers.environment import xla_flags


def test_a_failed_section_is_in_the_report_and_the_next_still_runs(tmp_path, monkeypatch):
    def fails(commands):
        return commands.python('-c', 'print("half"); raise SystemExit("no such device")')

    def slow(commands):
        return commands.python('-c', 'import time; print("begun", flush=True); time.sleep(600)')

    def works(commands):
        return commands.python('-c', 'print("| 1 |")')

    sections = [Section('A', 60, fails), Section('B', 0.5, slow), Section('C', 60, works)]
    monkeypatch.setattr(gpu_report, 'sections', lambda: sections)
    monkeypatch.setattr(sys, 'argv', ['gpu_report.py', '--rehearse', str(tmp_path / 'report.md')])
    with pytest.raises(SystemExit, match=r'2 section\(s\) failed'):
        gpu_report.main()
    a, b, c = (tmp_path / 'report.md').read_text().split('\n## ')[1:]
    assert 'Failed with status 1' in a and 'half' in a and 'no such device' in a
    assert 'out of time' in b and 'begun' in b
    assert '| 1 |' in c and 'Failed' not in c


def test_the_sections_end_within_nine_minutes():
    assert sum(section.seconds for section in gpu_report.sections()) < 9 * 60


def test_only_a_sentence_counts_as_the_refusal_of_a_second_run(tmp_path, monkeypatch):
    commands = gpu_report.Commands(gpu_report.GPU, tmp_path, 30)
    first = [sys.executable, '-c', 'import time; print("step 2", flush=True); time.sleep(60)']
    started = subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', lambda command, **options: started(first, **options))
    for text, accepted in (
        ('**Failed with status 1.** too little memory', True),
        ('**Failed with status 1.** Traceback (most recent call last)', False),
        ('**Failed with status -11.**', False),
    ):

        def refused(*arguments, text=text):
            raise Failed(text)

        monkeypatch.setattr(commands, 'python', refused)
        if accepted:
            assert 'Refused, as it has to be' in gpu_report.two_runs(commands)
        else:
            with pytest.raises(Failed):
                gpu_report.two_runs(commands)


def make_event(name, milliseconds):
    return SimpleNamespace(name=name, duration_ns=milliseconds * 1e6)


def make_trace(**lines):
    lines = [SimpleNamespace(name=name, events=events) for name, events in lines.items()]
    return SimpleNamespace(planes=[SimpleNamespace(name='/device:GPU:0', lines=lines)])


def test_kernels_of_all_streams_add_up_by_name():
    stream = [make_event('gemm', 3), make_event('softmax', 2), make_event('gemm', 4)]
    trace = make_trace(
        Stream13=stream, Stream14=[make_event('copy', 1)], Steps=[make_event('1', 9)]
    )
    assert kernels.largest(trace, 2) == [('gemm', 2, 7.0, 0.7), ('softmax', 1, 2.0, 0.2)]


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('libtpu'), reason='needs libtpu, to compile without a device')
def test_a_rehearsal_on_a_cpu_writes_every_section(tmp_path):
    report = tmp_path / 'report.md'
    environment = os.environ | {'PYTHON': sys.executable, 'XLA_FLAGS': xla_flags()}
    command = ['bash', 'benchmarks/on_gpu.sh', '--rehearse', str(report)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    text = report.read_text()
    assert done.returncode == 0, text
    for section in gpu_report.sections():
        assert f'## {section.title}' in text
    assert 'parameters equal in every bit' in text and '| `' in text
    assert (
        '| mae_jax | bfloat16 |' in text
        and '| mae_jax | float32 |' in text
        and 'rehearsal on a CPU' in text
    )
