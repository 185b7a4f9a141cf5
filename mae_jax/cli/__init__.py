"""The command `mae-jax`: a module for each subcommand, thin on purpose.

Each has `add_arguments(parser)` and `run(arguments)`, which reads the flags, calls one function of
another package and prints. That package is imported inside `run`, since JAX takes seconds to import
and neither --help nor a wrong flag needs it. May import every other package; only `__main__`
imports it. Start reading with `main.py`.
"""
