"""Configuration of the documentation; ``sphinx-build -W -n docs docs/_build/html``."""

from __future__ import annotations

import os

import clipad_sklearn

# Threads that outnumber idle cores slow torch down many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "clipad-sklearn"
author = "the clipad-sklearn developers"
copyright = f"2026, {author}"
version = release = clipad_sklearn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
# As in scikit-learn: single backticks mark names of parameters.
default_role = "literal"

# -- reference -----------------------------------------------------------------

# Types are told in the docstrings, in words.
autodoc_typehints = "none"
autosummary_generate = True
# The template of classes lists their methods.
numpydoc_show_class_members = False
nitpick_ignore_regex = [
    (r"py:.*", r"(numpy|sklearn|PIL|torch)\..*"),
]

# -- examples ------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "within_subsection_order": "ExampleTitleSortKey",
    "image_scrapers": ("matplotlib",),
}

# -- pages ---------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "clipad-sklearn"
html_show_sourcelink = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
}
html_sidebars = {"changelog": [], "limits": [], "methods": []}
