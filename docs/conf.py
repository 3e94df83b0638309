"""The documentation: `sphinx-build -W --keep-going -b html docs build/docs`. Needs no network, and its pages ask for none."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

from pages import linking  # noqa: E402
from pages.write import write_all  # noqa: E402

import interp_gpt2  # noqa: E402

project = "interp_gpt2"
release = version = interp_gpt2.__version__
author = "the interp_gpt2 authors"
copyright = "the interp_gpt2 authors, MIT licence"

extensions = ["myst_parser"]
exclude_patterns = ["generated/parts", "pages"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # files included from elsewhere begin at their own level

smartquotes = False  # in a docstring "ln1" is what to type

html_theme = "furo"
html_title = f"interp_gpt2 {release}"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
html_use_index = False  # the search finds names
html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "monokai"
html_theme_options = {"navigation_with_keys": True}


def setup(app: object) -> None:
    write_all(ROOT, DOCS / "generated")
    linking.setup(app, ROOT)
