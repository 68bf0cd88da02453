"""How the manual is built: Markdown by MyST, and the pages that come from the code by _ext/sshgrid_docs.py.

The theme is furo: it reads well on a phone, follows the reader's light or dark setting, and loads nothing from other
hosts. Its fonts are those of the reader's machine.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from sshgrid.version import VERSION  # noqa: E402 - needs the path above

project = "sshgrid"
author = "the sshgrid authors"
version = release = VERSION
extensions = ["myst_parser", "sphinx_design", "sshgrid_docs"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext", "man"]
html_theme = "furo"
html_title = f"sshgrid {VERSION}"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["sshgrid.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
_SYSTEM_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Helvetica Neue', Arial, sans-serif"
_FIXED_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
html_theme_options = {
    "sidebar_hide_name": False,
    "navigation_with_keys": True,
    "light_css_variables": {
        "font-stack": _SYSTEM_FONT,
        "font-stack--monospace": _FIXED_FONT,
        "color-brand-primary": "#0f766e",
        "color-brand-content": "#0f766e",
        "color-brand-visited": "#0f766e",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5eead4",
        "color-brand-content": "#5eead4",
        "color-brand-visited": "#5eead4",
    },
}
