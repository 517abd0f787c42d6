"""Configuration of the documentation: python -m sphinx -W --keep-going docs docs/_build/html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

import softlane

project = "softlane"
copyright = "softlane contributors"
version = release = softlane.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
suppress_warnings = ["myst.xref_missing"]  # links of included files to others in the repository
numpydoc_show_class_members = False
autodoc_typehints = "none"  # the text has them; and a function with overloads is one function
extlinks = {
    "doi": ("https://doi.org/%s", "doi:%s"),
    "arxiv": ("https://arxiv.org/abs/%s", "arXiv:%s"),
}

html_theme = "pydata_sphinx_theme"
html_title = "softlane"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navbar_align": "left", "header_links_before_dropdown": 4}
html_show_sourcelink = False
# Only the pages of the API have others beside them.
html_sidebars: dict[str, list[str]] = {
    path.stem: [] for path in Path(__file__).parent.glob("*.md") if path.stem != "api"
}
html_math_renderer = "mathml"


def visit_math(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Formulas as MathML, which browsers show without a script from elsewhere."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
