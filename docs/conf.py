"""How the manual is built: Markdown by MyST, and the pages that come from the code by _ext/sshgrid_docs.py."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from sshgrid.version import VERSION  # noqa: E402 - needs the path above

project = "sshgrid"
author = "the sshgrid authors"
version = release = VERSION
extensions = ["myst_parser", "sshgrid_docs"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext"]
html_theme = "alabaster"
html_theme_options = {
    "description": "A cluster made of nothing but ssh",
    "fixed_sidebar": True,
    "page_width": "70rem",
    "show_powered_by": False,
}
html_show_copyright = False
