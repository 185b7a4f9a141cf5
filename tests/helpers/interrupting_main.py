"""main.py, which gets the signal of the variable SIGNAL at the moment that MOMENT names.

'import x': when the module x is looked for. 'exec': when the process is replaced for large pages.
'compile n': within the n-th program that XLA compiles. 'call module:name': when a function is
called. 'step n': when a step is started. 'exit': when Python calls what is registered for its exit.
AGAIN=1: a second signal as soon as the first is answered.
"""

import atexit
import importlib
import os
import signal
import sys
import threading
import time

from mae_jax.__main__ import main
from mae_jax.runtime import interrupts

KIND, _, WHAT = os.environ['MOMENT'].partition(' ')
SIGNAL = signal.Signals[os.environ.get('SIGNAL', 'SIGINT')]


def press() -> None:
    os.kill(os.getpid(), SIGNAL)
    time.sleep(0.2)  # longer than an answer takes


def press_while_busy() -> None:
    """The signal comes a little later, from elsewhere."""
    threading.Thread(target=lambda: (time.sleep(0.02), press()), daemon=True).start()


class Finder:
    """Presses when a module is looked for, and leaves the search to the others."""

    def find_spec(self, name, path=None, target=None):
        if KIND == 'import' and name == WHAT:
            press()
        elif KIND in ('call', 'step', 'compile') and name == 'mae_jax.runtime.compilation_cache':
            sys.meta_path.remove(self)
            patch()  # now the modules of a run are imported


def patch() -> None:
    """Presses in the functions of a run."""
    if KIND == 'call':
        module, _, name = WHAT.partition(':')
        replace(importlib.import_module(module), name, 1, press)
    if KIND == 'compile':
        from jax._src import compiler

        replace(compiler, 'backend_compile_and_load', int(WHAT), press_while_busy)
    if KIND == 'step':
        from mae_jax.experiment import train

        make = train.jit_step

        def jit_step(*arguments):
            steps = {'step': make(*arguments)}
            module = type('steps', (), steps)
            replace(module, 'step', int(WHAT), press)
            return module.step

        train.jit_step = jit_step


def replace(module, name: str, which: int, action) -> None:
    """Calls `action` at the start of a call of a function, the `which`-th."""
    function, calls = getattr(module, name), []

    def pressed(*arguments, **options):
        calls.append(name)
        if len(calls) == which:
            action()
        return function(*arguments, **options)

    setattr(module, name, pressed if module.__class__ is not type else staticmethod(pressed))


def press_again(line: str) -> None:
    write_line(line)
    if os.environ.get('AGAIN') and interrupts.AGAIN in line:
        press_while_busy()


write_line, interrupts.write_line = interrupts.write_line, press_again
sys.meta_path.insert(0, Finder())
if KIND == 'exec':
    execve = os.execve
    os.execve = lambda *arguments: (press(), execve(*arguments))
if KIND == 'exit':
    atexit.register(press)

if __name__ == '__main__':
    main(['train', *sys.argv[1:]], 'main.py')
