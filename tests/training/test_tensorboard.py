"""Event files of TensorBoard: what its dashboards group, name and show."""

import io
import json
import struct

import numpy as np
from helpers.commands import make_tiny_config
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mae_jax.training.metrics import MetricsWriter


def make_writer(workdir, start_step=0, config=None):
    return MetricsWriter(
        workdir,
        start_step=start_step,
        total_steps=100,
        steps_per_epoch=10,
        config=config,
        console=io.StringIO(),
    )


def events_of(workdir):
    """Every event of every file, oldest first, read by the record format's own rules."""

    def masked(data):
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    events = []
    files = workdir.glob('events.out.tfevents.*')
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):
            header = content[at : at + 8]
            (length,) = struct.unpack('<Q', header)
            data = content[at + 12 : at + 12 + length]
            assert struct.unpack('<I', content[at + 8 : at + 12])[0] == masked(header)
            assert struct.unpack_from('<I', content, at + 12 + length)[0] == masked(data)
            events.append(Event.FromString(data))
            at += length + 16
    return events


def test_scalars_are_grouped_and_the_losses_come_first(tmp_path):
    metrics = {'loss': 0.5, 'grad_norm': 2.0, 'learning_rate': 0.25, 'mfu': 0.125}
    metrics |= {'skipped_steps': 0.0, 'eta_seconds': 8.0}
    with make_writer(tmp_path) as writer:
        writer.scalars(5, metrics)
        writer.scalars(6, {'eval/loss': 0.25, 'probe/knn': 1.0})
    events = events_of(tmp_path)
    assert events[0].file_version == 'brain.Event:2'
    values = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
    assert values == {
        'loss': (5, 0.5),
        'train/optimizer/grad_norm': (5, 2.0),
        'train/optimizer/learning_rate': (5, 0.25),
        'train/skipped_steps': (5, 0.0),
        'speed/mfu': (5, 0.125),
        'speed/eta_seconds': (5, 8.0),
        'eval/loss': (6, 0.25),
        'probe/knn': (6, 1.0),
    }
    assert sorted(values)[:2] == ['eval/loss', 'loss']  # TensorBoard unfolds two groups
    first, second = map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
    assert first == {'step': 5} | metrics  # the names there have no groups
    assert second.keys() == {'step', 'eval/loss', 'probe/knn'}


def test_later_steps_are_superseded_by_a_resumed_run(tmp_path):
    with make_writer(tmp_path, start_step=20) as writer:
        writer.scalars(30, {'loss': 1.0})
    starts = [e.step for e in events_of(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [21]


def test_a_picture_is_shown_as_it_is(tmp_path):
    first, second = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    with make_writer(tmp_path) as writer:
        writer.image(10, 'reconstruction', first)
        writer.image(20, 'reconstruction', second)
    shown = [(e.step, v) for e in events_of(tmp_path) for v in e.summary.value]
    tag = 'eval/reconstruction'
    assert [(step, v.tag) for step, v in shown] == [(10, tag), (20, tag)]
    decoded = Image.open(io.BytesIO(shown[1][1].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), second)


def test_the_config_is_shown_as_text(tmp_path):
    config = make_tiny_config()
    with make_writer(tmp_path, config=config) as writer:
        writer.scalars(1, {'loss': 1.0})
    (value,) = (v for e in events_of(tmp_path) for v in e.summary.value if v.tag != 'loss')
    assert value.tag == 'config/text_summary'
    assert value.metadata.plugin_data.plugin_name == 'text'
    markdown = value.tensor.string_val[0].decode()
    assert all(line.startswith('    ') for line in markdown.splitlines())  # a block of code
    shown = json.loads(markdown)
    assert shown['model']['width'] == config.model.width
    assert shown['optimizer']['base_lr'] == config.optimizer.base_lr


def test_a_line_of_scalars_is_on_disk_at_once_and_flushed_once(tmp_path, monkeypatch):
    flushes = []
    flush = EventsWriter.flush
    monkeypatch.setattr(EventsWriter, 'flush', lambda self: flushes.append(1) or flush(self))
    with make_writer(tmp_path) as writer:
        writer.scalars(1, {'loss': 1.0})
        flushes.clear()
        writer.scalars(2, {'loss': 0.5, 'grad_norm': 2.0, 'learning_rate': 0.25})
        assert len(flushes) == 1
        assert [event.step for event in events_of(tmp_path)[-3:]] == [2, 2, 2]
