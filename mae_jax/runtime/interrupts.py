"""Answers Ctrl-C at once, whatever the process is doing: one line, and an exit or a request.

Python calls its signal handlers in the main thread, between two of its instructions: a compilation
by XLA delays them by minutes. A KeyboardInterrupt that is raised within an import, a trace or a
callback of a library ends in a traceback, and beside a compiling thread the interpreter crashes at
its exit. So the signal wakes a thread, and that prints the line and ends the process with
`os._exit`, unless the program has asked for something else.

Imports nothing but the standard library, for use before everything else.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

EXIT_INTERRUPTED = 130
"""A shell's status for a process that Ctrl-C ended."""
AGAIN = 'press Ctrl-C again to stop now'
EXIT_TERMINATED = 143
"""A shell's status for SIGTERM."""


class Interrupts:
    """The handler of SIGINT in a command, once `answer_interrupts` has installed it.

    Attributes:
      farewell: the line of a Ctrl-C that ends the process.
    """

    def __init__(self) -> None:
        self.farewell = 'stopped'
        self._request: tuple[str, Callable[[], None]] | None = None
        self._pressed = False
        self._raises = False
        self._answered = threading.Event()

    def __call__(self, number: int, frame: object) -> None:
        """Python's handler, in the main thread, some time after the thread has answered."""
        if self._raises:
            self._answered.wait(1)
            raise KeyboardInterrupt

    def ask(self, line: str, request: Callable[[], None]) -> None:
        """From now on the first Ctrl-C prints `line` and calls `request`; the second one exits."""
        self._request = line, request

    def exit(self, farewell: str) -> None:
        """From now on a Ctrl-C ends the process, with this line."""
        self.farewell, self._request = farewell, None

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within, the first Ctrl-C raises KeyboardInterrupt in the main thread, to clean up."""
        self.ask(f'stopping; {AGAIN}', lambda: None)
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def answer(self) -> None:
        """Answers one Ctrl-C; runs in a thread of its own."""
        if self._request is None or self._pressed:
            write_line(self.farewell)
            os._exit(EXIT_INTERRUPTED)
        else:
            self._pressed = True
            line, request = self._request
            write_line(line)
            self._answered.set()
            request()


def answer_interrupts() -> None:
    """Installs an `Interrupts`; call it first in a program.

    A process that was started with SIGINT ignored, such as a script's background job, goes on
    ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        interrupts = Interrupts()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)

        def watch() -> None:
            hold_interrupts()  # in this thread: the main thread decides when they are delivered
            while True:
                for number in os.read(reader, 1):
                    if number == signal.SIGINT:
                        interrupts.answer()

        threading.Thread(target=watch, name='mae_jax-interrupts', daemon=True).start()
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, interrupts)
        os.register_at_fork(after_in_child=_leave_to_parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `hold_interrupts`


def hold_interrupts() -> None:
    """Blocks SIGINT in this thread; `answer_interrupts` undoes it, perhaps in a new program."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def current_interrupts() -> Interrupts | None:
    """Returns the process's `Interrupts`; None in a program of somebody else's."""
    handler = signal.getsignal(signal.SIGINT)
    return handler if isinstance(handler, Interrupts) else None


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM raise KeyboardInterrupt and SystemExit, for cleanup."""
    interrupts = current_interrupts()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        with interrupts.raising() if interrupts else contextlib.nullcontext():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_line(line: str) -> None:
    """Writes a line to standard error, from a thread or a handler while others may print."""
    after_echo = '\n' if os.isatty(2) else ''  # the terminal shows ^C
    with contextlib.suppress(OSError):
        os.write(2, f'{after_echo}{line}\n'.encode())


def _leave_to_parent() -> None:
    """Undoes `answer_interrupts` in a forked process, whose bytes would reach the parent."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
