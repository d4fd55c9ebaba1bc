"""Configuration of Sphinx: `sphinx-build -W --keep-going docs docs/_build`."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_extensions")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_istar  # noqa: E402

project = "keras_istar"
author = "The keras_istar authors"
copyright = author
release = version = keras_istar.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "keras_docstrings",
    "measures_table",
    "public_names",
]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"
python_maximum_signature_line_length = 60
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Reference",
]

html_theme = "pydata_sphinx_theme"
html_title = "keras_istar"
html_static_path = ["_static"]
html_css_files = ["keras_istar.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"**": []}
copybutton_prompt_text = ">>> |... |$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = False
html_theme_options = {
    "github_url": "https://github.com/keras-istar/keras-istar",
    "header_links_before_dropdown": 5,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "footer_end": [],
}
