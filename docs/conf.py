"""Sphinx: MyST pages, the furo theme, and an API reference from the docstrings. Any warning fails the build."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import byzflow

project = "byzflow"
author = "the byzflow developers"
release = version = byzflow.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "plain_docstrings",
    "catalogue_table",
    "federation_keys",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "byzflow"

default_role = "code"  # docstrings write `name`, as Markdown does
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
myst_heading_anchors = 3
