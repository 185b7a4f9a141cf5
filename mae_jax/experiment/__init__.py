"""A config and a work directory -> a finished run.

Start with `run.py`, which shows the order of a run. May import everything but the command line,
ablations and planning.
"""
