"""Writes scalars and pictures for TensorBoard, in the thread that logs them.

tensorboardX's own `SummaryWriter` writes from a thread, which a full disk ends with a traceback
and without a word to the run.
"""

import os
import time
from typing import Any

import numpy as np
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar, text

from mae_jax.training.loggers import grouped


class Board:
    """One event file of a run, in its work directory: a `Logger`.

    TensorBoard names a run by the folder of its files: `tensorboard --logdir runs` shows those of
    runs/quickstart as 'quickstart'.

    Args:
      workdir: of the run.
      start_step: TensorBoard hides what earlier files hold of later steps.
      config: of the run, shown as text; None shows none.

    Raises (from every method):
      OSError: the file cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int, config: Any = None):
        epath.Path(workdir).mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(os.path.join(workdir, 'events'), f'.{os.getpid()}')
        self._write(start_step + 1, session_log=SessionLog(status=SessionLog.START))
        if config is not None:
            lines = config.to_json_best_effort(indent=2, sort_keys=True).splitlines()
            code = '\n'.join(f'    {line}' for line in lines)  # Markdown
            self._write(start_step + 1, summary=text('config', code))
        self._events.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=scalar(grouped(name), value))
        self._events.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._write(step, summary=image(f'eval/{name}', pixels, dataformats='HWC'))
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **content) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
