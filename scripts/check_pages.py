#!/usr/bin/env python3
"""Check that the built manual loads nothing from another host: scripts/check_pages.py FOLDER.

Links to other hosts are allowed. Prints each address of another host that a browser would load without a
click, and exits with 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_REMOTE = re.compile(r"\s*(?:[a-z]+:)?//", re.IGNORECASE)
_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE)
# Attributes whose address is loaded only after a click.
_LINKS = {("a", "href"), ("a", "xlink:href"), ("area", "href"), ("form", "action")}
_LOADING_RELS = {"stylesheet", "icon", "shortcut", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch"}
_ADDRESSES = {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        rels = set((dict(attrs).get("rel") or "").split())
        for name, value in attrs:
            if name == "style":
                self.found += _CSS.findall(value or "")
            if name not in _ADDRESSES or (tag, name) in _LINKS or (tag == "link" and not rels & _LOADING_RELS):
                continue
            if _REMOTE.match(value or ""):
                self.found.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.found += _CSS.findall(data)


def loaded_by_html(text: str) -> list[str]:
    """The addresses on other hosts that a page or an SVG loads without a click."""
    page = _Page()
    page.feed(text)
    page.close()
    return page.found


def loaded_by_css(text: str) -> list[str]:
    """The addresses on other hosts that a style sheet loads."""
    return _CSS.findall(text)


def findings(folder: Path) -> Iterator[str]:
    """Each address with the file that loads it."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".svg"):
            found = loaded_by_html(path.read_text(encoding="utf-8"))
        elif path.suffix == ".css":
            found = loaded_by_css(path.read_text(encoding="utf-8"))
        else:
            continue
        yield from (f"{path.relative_to(folder)}: {address}" for address in found)


def main() -> int:
    folder = Path(sys.argv[1])
    if not (folder / "index.html").is_file():
        sys.stderr.write(f"error: {folder}: no built manual\nhint: make docs\n")
        return 1
    found = list(findings(folder))
    sys.stderr.writelines(f"error: {line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
