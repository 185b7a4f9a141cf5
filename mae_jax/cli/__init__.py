"""The command `mae-jax`: a module for each subcommand, thin on purpose.

Each has `add_arguments(parser)` and `run(arguments)`, which reads the flags, calls one function of
another package and prints. That package is imported inside `run`, since JAX takes seconds to import
and neither --help nor a wrong flag needs it. The module's docstring is the help of the command; a
new command needs a line in `main.COMMANDS`. `arguments.py` parses, with the `--config.field=value`
of commands that take a config. May import every other package; only `__main__` imports it. Start
reading with `main.py`.
"""
