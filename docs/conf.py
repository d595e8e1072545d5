"""Configuration of the documentation; ``sphinx-build -W -n docs docs/_build/html``."""

from __future__ import annotations

import os
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

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
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
# As in scikit-learn: single backticks mark names of parameters.
default_role = "literal"

# -- reference -----------------------------------------------------------------

# The docstrings give types in words.
autodoc_typehints = "none"
autosummary_generate = True
# The template of classes lists their methods.
numpydoc_show_class_members = False
nitpick_ignore_regex = [
    (r"py:.*", r"(numpy|scipy|sklearn|PIL|torch)\..*"),
]

# -- examples ------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    # Its page of times loads scripts from a network.
    "write_computation_times": False,
    "within_subsection_order": "ExampleTitleSortKey",
    "image_scrapers": ("matplotlib",),
}

# -- pages ---------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "clipad-sklearn"
html_show_sourcelink = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 4,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
}
html_static_path = ["_static"]
html_css_files = ["custom.css"]
# Pages without subpages have nothing to show there.
_alone = "benchmarks changelog glossary index limits methods model_card quickstart"
html_sidebars: dict[str, list[str]] = {name: [] for name in _alone.split()}

# -- formulas ------------------------------------------------------------------

# MathML, which browsers render natively: MathJax would be fetched from a network at
# reading time, and these pages are read where there is none.
html_math_renderer = "mathml"


def visit_inline_math(translator: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_block_math(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    formula = tex2mathml(node.astext()).replace("<math", '<math display="block"', 1)
    # A wide one scrolls on its own on a phone.
    style = "overflow-x: auto; margin: 1em 0"
    translator.body.append(f'<div style="{style}">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register the formulas with Sphinx."""
    app.add_html_math_renderer(
        "mathml", (visit_inline_math, None), (visit_block_math, None)
    )
