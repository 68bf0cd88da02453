"""Files that are named on the command line: any path, but only those below one folder through the SSH gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[3])
LOOK = """
import json, sys
from sshgrid.client import files
from sshgrid.errors import UsageError
if sys.argv[1] == "confined":
    files.confine()
found = {}
for path in sys.argv[2:]:
    try:
        found[path] = files.open_binary(path).read().decode()
    except (OSError, UsageError) as error:
        found[path] = type(error).__name__
print(json.dumps([found, [files.exists(path) for path in sys.argv[2:]], sorted(files.names("."))]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user folder with links and a FIFO, and a secret file beside it."""
    (tmp_path / "secret").write_text("TOPSECRET")
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    for name in ("plain", "sub/plain"):
        (home / name).write_text("mine")
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "near").symlink_to("plain")
    (home / "out").symlink_to(tmp_path)
    os.mkfifo(home / "fifo")
    return home


def look(folder: Path, how: str, *paths: str) -> tuple[dict[str, str], list[bool], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, how, *paths],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT},
        check=True,
        capture_output=True,
        timeout=30,
    )
    found, exist, names = json.loads(done.stdout)
    return found, exist, names


def test_A26_through_the_gateway_nothing_outside_is_found(folder: Path) -> None:
    outside = (str(folder.parent / "secret"), "../secret", "sub/../../secret", "/etc/passwd", "//etc/passwd")
    links = ("link", "near", "out/secret", "out", "fifo")
    found, exist, names = look(folder, "confined", *outside, *links)
    assert set(found.values()) == {"UsageError"}
    assert exist == [False] * len(found)
    assert names == sorted(("fifo", "link", "near", "out", "plain", "sub"))


def test_through_the_gateway_files_in_the_folder_are_found(folder: Path) -> None:
    mine = ("plain", "./plain", "sub/plain", "sub//plain", "sub/./plain")
    found, exist, _ = look(folder, "confined", *mine, "none", "plain/x")
    assert [found[path] for path in mine] == ["mine"] * 5
    assert (found["none"], found["plain/x"]) == ("FileNotFoundError", "NotADirectoryError")
    assert exist == [True] * 5 + [False] * 2


def test_without_the_gateway_paths_are_those_of_the_system(folder: Path) -> None:
    found, _, _ = look(folder, "free", "plain", "link", "../secret", "near")
    assert list(found.values()) == ["mine", "TOPSECRET", "TOPSECRET", "mine"]


WRITE = """
import json, sys
from sshgrid.client import files
from sshgrid.errors import UsageError
if sys.argv[1] == "confined":
    files.confine()
found = {}
for path in sys.argv[2:]:
    try:
        files.replace(path, b"written")
        found[path] = "done"
    except (OSError, UsageError) as error:
        found[path] = type(error).__name__
print(json.dumps(found))
"""


def write(folder: Path, how: str, *paths: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", WRITE, how, *paths],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT},
        check=True,
        capture_output=True,
        timeout=30,
    )
    return dict(json.loads(done.stdout))


def test_A26_through_the_gateway_nothing_outside_is_written(folder: Path) -> None:
    outside = (str(folder.parent / "secret"), "../secret", "sub/plain", "out/secret", "..", "")
    assert set(write(folder, "confined", *outside).values()) == {"UsageError"}
    assert write(folder, "confined", "plain", "new", "link") == {"plain": "done", "new": "done", "link": "done"}
    assert (folder.parent / "secret").read_text() == "TOPSECRET"  # the link itself was replaced
    assert [(folder / name).read_text() for name in ("plain", "new", "link")] == ["written"] * 3
    assert not list(folder.glob("*.new"))


def test_without_the_gateway_links_and_modes_are_kept(folder: Path) -> None:
    (folder / "plain").chmod(0o755)
    assert write(folder, "free", "near") == {"near": "done"}
    assert (folder / "near").is_symlink()
    assert ((folder / "plain").read_text(), (folder / "plain").stat().st_mode & 0o777) == ("written", 0o755)
