"""scripts/check_pages.py: a page that loads something from another host is an error, a link is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_pages.py"


def _check(folder: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img src="HTTP://example/a.png">',
        "<style>@import 'https://example/a.css';</style>",
        '<p style="background: url(https://example/a.png)">',
        '<svg><image xlink:href="https://example/a.png"/></svg>',
    ],
)
def test_a_resource_from_another_host_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    code, output = _check(tmp_path)
    assert code == 1
    assert output.lower().startswith("error: index.html: ")


@pytest.mark.parametrize(
    "text",
    [
        '<a href="https://example.org/">elsewhere</a>',
        '<link rel="canonical" href="https://example.org/">',
        '<img src="_static/logo.svg"><script src="a.js"></script>',
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        "<p>url(https://example.org)</p>",
    ],
)
def test_links_and_local_files_are_not_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    assert _check(tmp_path) == (0, "")


def test_a_resource_in_a_style_sheet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>", encoding="utf-8")
    (tmp_path / "a.css").write_text("@font-face{src:url('https://example/a.woff2')}", encoding="utf-8")
    assert _check(tmp_path) == (1, "error: a.css: https://example/a.woff2\n")


def test_a_folder_without_a_manual_is_an_error(tmp_path: Path) -> None:
    assert _check(tmp_path)[0] == 1
