"""The site, built by `make docs`: Sphinx with MyST for the pages and autodoc for the reference."""

from __future__ import annotations

import sys
from pathlib import Path

import woodbury

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "woodbury"
author = "The woodbury authors"
copyright = author
release = woodbury.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "namespace",
    "offline",
]
exclude_patterns = ["_extensions"]
default_role = "literal"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes_style")]
napoleon_use_ivar = True
napoleon_use_rtype = False

copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "woodbury"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
