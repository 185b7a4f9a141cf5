"""Starts the program: `mae-jax <command>`, `python -m mae_jax <command>`, and `main.py`."""

import os
import sys

from mae_jax.runtime.interrupts import answer_interrupts


def main(argv: list[str] | None = None, program: str = 'mae-jax') -> None:
    """Runs a command, and ends the process with its exit status.

    Args:
      argv: the command and its arguments; None for those of the process.
      program: its name in messages.
    """
    answer_interrupts()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['train']:
        from mae_jax.runtime.large_pages import start_with_large_pages

        start_with_large_pages()
    from mae_jax.cli.main import main

    if status := main(argv, program):
        sys.stdout.flush()
        os._exit(status)  # a thread that hangs in a read would hold the exit up


if __name__ == '__main__':
    main()
