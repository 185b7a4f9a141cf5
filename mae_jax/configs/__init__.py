"""The recipes of `configs/`: `from mae_jax.configs import vit_large`.

An installed package has these files here: setup.cfg maps the package to `configs/`. In a checkout,
which needs no installation, this module takes their place and names that directory.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / 'configs')]
