"""Configures the documentation site.

pip install -e '.[docs]' && sphinx-build -W --keep-going docs build/docs
"""

import os
import sys
from pathlib import Path

os.environ |= {'JAX_PLATFORMS': 'cpu', 'COLUMNS': '92'}  # of the commands' help
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / '_ext')]

project = 'mae_jax'
copyright = 'the authors of mae_jax, Apache License 2.0'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'reference']
exclude_patterns = ['_ext']

html_theme = 'furo'
html_title = 'mae_jax'
CODE = {'code-font-size': 'var(--font-size--small--3)'}  # lines of 96 characters fit
html_theme_options = {
    'navigation_with_keys': True,
    'light_css_variables': CODE,
    'dark_css_variables': CODE,
}
pygments_style = 'friendly'

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3  # [text](page.md#a-heading), as GitHub links them

default_role = 'code'  # `x` in docstrings
smartquotes = False  # 'mean' is a string
autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
python_display_short_literal_types = True
napoleon_use_rtype = False
