"""Files that travel with a run, and come back: over real SSH hosts, one of them with nothing but busybox."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.whole.grid import Grid

pytestmark = pytest.mark.lab

# What lies in the run's folder: every file with its mode and the first digits of its digest.
LIST = """cd . && find . -type f | LC_ALL=C sort | while IFS= read -r f; do
  m=-; [ ! -x "$f" ] || m=x
  printf '%s %s %s\\n' "$f" "$m" "$(sha256sum <"$f" | cut -c 1-8)"
done
"""


def listed(*files: tuple[str, str, bytes]) -> str:
    rows = sorted((f"./{name}", mode, hashlib.sha256(content).hexdigest()[:8]) for name, mode, content in files)
    return "".join(f"{name} {mode} {digest}\n" for name, mode, digest in rows)


def test_a_folder_and_a_file_lie_in_the_runs_folder_under_the_names_they_were_given(
    grid: Grid, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid.write("list.sh", LIST)
    grid.write('data/it\'s "x" $(id).csv', b"\0\xff")
    grid.write("data/deep/er/tool.sh", "echo tool\n").chmod(0o755)
    big = os.urandom(3 << 20)
    grid.write("data/big.bin", big)
    grid.write("one/two/three.txt", "3")
    outside = tmp_path_factory.mktemp("outside") / "far.txt"
    outside.write_text("far")
    done = grid("run", "--with", "./data/", "--with", "one/two/three.txt", "--with", str(outside), "list.sh")
    assert done == (
        0,
        listed(
            ('data/it\'s "x" $(id).csv', "-", b"\0\xff"),
            ("data/deep/er/tool.sh", "x", b"echo tool\n"),
            ("data/big.bin", "-", big),
            ("one/two/three.txt", "-", b"3"),
            ("far.txt", "-", b"far"),
        ).encode(),
        "",
    )


WRITES = """mkdir -p out/deep .hidden
printf 'a,b\\n' >out/a.csv
printf '0123456789' >"out/deep/b c.csv"
printf x >out/note.txt; printf x >.hidden/dot
echo run >tool.sh; chmod +x tool.sh
exit ${1-0}
"""


def fetched(folder: Path) -> dict[str, bytes]:
    """Every plain file below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_come_back_also_of_a_program_that_failed(grid: Grid) -> None:
    grid.write("writes.sh", WRITES)
    done = grid("run", "--fetch", "out/**/*.csv", "--fetch", "tool.sh", "--into", "back", "writes.sh", "3")
    assert done == (
        3,
        b"",
        "fetched back/out/a.csv (4B)\nfetched back/out/deep/b c.csv (10B)\nfetched back/tool.sh (4B)\n",
    )
    assert fetched(grid.folder / "back") == {
        "out/a.csv": b"a,b\n",
        "out/deep/b c.csv": b"0123456789",
        "tool.sh": b"run\n",
    }
    assert os.access(grid.folder / "back/tool.sh", os.X_OK)
    assert not os.access(grid.folder / "back/out/a.csv", os.X_OK)
