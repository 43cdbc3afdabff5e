"""The documentation as a static site: Sphinx reads the pages of this folder and the docstrings.

make docs    # writes build/site/index.html
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "fasthg"
author = "The fasthg authors"
copyright = "the fasthg authors, MIT licence"
release = re.search(r'__version__ = "(.+)"', (ROOT / "fasthg/__init__.py").read_text())[1]  # type: ignore[index]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fasthg {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["wide-tables.css"]

# Headings of a page are targets, as on GitHub: films.md#the-locator.
myst_heading_anchors = 3
# Links to files of the checkout that are no pages, such as ../benchmarks/results.
myst_all_links_external = False
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"
napoleon_use_rtype = False
