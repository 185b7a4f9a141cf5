"""Builds the optional C module; everything else about the package is in setup.cfg.

Without a compiler or libjpeg-turbo's header the module is left out, with a warning, and Pillow does
its work.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            'mae_jax.data.images._jpeg',
            ['mae_jax/data/images/_jpeg.c'],
            depends=['mae_jax/data/images/_resize.h'],
            libraries=['jpeg'],
            optional=True,
        )
    ]
)
