"""Settings of the documentation: `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import diamond_gym  # noqa: E402

project = "diamond_gym"
author = "the diamond_gym authors"
copyright = "2026, the diamond_gym authors"
release = diamond_gym.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False  # links are checked by MyST; types of other libraries have no page here

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write `name` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Optional attributes", "Attributes")]

html_theme = "furo"
html_title = "diamond_gym"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["wide.css"]


def escape_shapes(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep the stars of shapes, (n, *shape) and 'b *a', which reStructuredText would read as emphasis."""
    lines[:] = [re.sub(r" \*(?=\w)", r" \\*", line) for line in lines]


def setup(app: Any) -> None:
    """Change docstrings after napoleon has added the types of attributes."""
    app.connect("autodoc-process-docstring", escape_shapes, priority=900)
