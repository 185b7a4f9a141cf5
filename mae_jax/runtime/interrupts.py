"""Answers Ctrl-C and SIGTERM at once, whatever the process is doing: one line, then what it asks.

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
from collections.abc import Callable, Iterable, Iterator

EXIT_INTERRUPTED = 130
"""A shell's status for a process that Ctrl-C ended."""
EXIT_TERMINATED = 143
"""A shell's status for SIGTERM."""
STATUS = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
"""The signals that are answered -> exit status of a process that one of them ends."""
AGAIN = 'press Ctrl-C again to stop now'


class Interrupts:
    """The handler of SIGINT and SIGTERM in a command, once `answer_interrupts` has installed it.

    A second Ctrl-C always ends the process. A second SIGTERM changes nothing: schedulers repeat it,
    and kill a process that takes too long.

    Attributes:
      farewell: the line of a signal that ends the process.
      forward: calls the handler that `take_back` replaced; None where it replaced none.
    """

    def __init__(self) -> None:
        self.farewell = 'stopped'
        self.forward: Callable[[], None] | None = None
        self._requests: dict[int, tuple[str, Callable[[], None]]] = {}
        self._answered: set[int] = set()
        self._is_answered = threading.Event()
        self._raises = False

    def __call__(self, number: int, frame: object) -> None:
        """Python's handler, in the main thread, some time after the thread has answered."""
        if not self._raises:
            return
        self._raises = False  # once: what is raised must not stop the cleanup
        self._is_answered.wait(1)
        if number == signal.SIGTERM:
            sys.exit(EXIT_TERMINATED)
        raise KeyboardInterrupt

    def ask(
        self, line: str, request: Callable[[], None], numbers: Iterable[int] = tuple(STATUS)
    ) -> None:
        """From now on these signals print `line` and call `request`, from a thread, once each."""
        self._requests |= {number: (line, request) for number in numbers}

    def exit(self, farewell: str) -> None:
        """From now on a signal ends the process, with this line."""
        self.farewell, self._requests = farewell, {}

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within, the first signal raises KeyboardInterrupt or SystemExit in the main thread."""
        self.ask('stopping', lambda: None)
        self._raises = True
        try:
            yield
        finally:
            self._raises = False
            self._requests = {}

    def take_back(self, number: int) -> None:
        """Puts this handler in front of one that a library has installed in C; see `forward`."""
        import ctypes

        def installed() -> int | None:
            action = ctypes.create_string_buffer(512)  # `struct sigaction`: its function is first
            ctypes.CDLL(None).sigaction(number, None, action)
            return ctypes.c_void_p.from_buffer(action).value

        theirs = installed()
        signal.signal(number, self)
        if theirs and theirs != installed():
            function = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)
            self.forward = lambda: function(number)

    def answer(self, number: int) -> None:
        """Answers one signal; runs in a thread of its own."""
        is_repeated = number in self._answered
        if number not in self._requests or (is_repeated and number == signal.SIGINT):
            write_line(self.farewell)
            os._exit(STATUS[number])
        elif not is_repeated:
            self._answered.add(number)
            line, request = self._requests[number]
            write_line(f'{line}; {AGAIN}' if number == signal.SIGINT else f'{line} (SIGTERM)')
            self._is_answered.set()
            request()


def answer_interrupts() -> None:
    """Installs an `Interrupts`; call it first in a program.

    A process that was started with a signal ignored, such as a script's background job and SIGINT,
    goes on ignoring it.
    """
    numbers = [n for n in STATUS if signal.getsignal(n) is not signal.SIG_IGN]
    if numbers:
        interrupts = Interrupts()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)

        def watch() -> None:
            hold_interrupts()  # in this thread: the main thread decides when they are delivered
            while True:
                for number in os.read(reader, 1):
                    if signal.getsignal(number) is interrupts:
                        interrupts.answer(number)

        threading.Thread(target=watch, name='mae_jax-interrupts', daemon=True).start()
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, interrupts)
        os.register_at_fork(after_in_child=_leave_to_parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STATUS)  # see `hold_interrupts`


def hold_interrupts() -> None:
    """Blocks the signals in this thread; `answer_interrupts` undoes it, even in a new program."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)


def current_interrupts() -> Interrupts | None:
    """Returns the process's `Interrupts`; None in a program of somebody else's."""
    handlers = map(signal.getsignal, STATUS)
    return next((each for each in handlers if isinstance(each, Interrupts)), None)


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM raise KeyboardInterrupt and SystemExit, for cleanup."""
    if interrupts := current_interrupts():
        with interrupts.raising():
            yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
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
    for number in STATUS:
        if isinstance(signal.getsignal(number), Interrupts):
            signal.signal(number, signal.SIG_DFL)
