"""The files of `--with`: names, .gitignore, links, and archives of small files. All errors are reported together."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from sshgrid.client import data
from sshgrid.client.data import Data, read_data
from sshgrid.errors import FileMissing, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(read: Data) -> dict[str, tuple[bytes, bool]]:
    """All files that would be in the folder of the run."""
    found = {}
    for source in read.sources:
        content = b"".join(source.pieces())
        assert len(content) == source.file.size
        if source.file in read.files:
            found[source.file.name] = content, source.file.executable
            continue
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read(), bool(member.mode & 0o111)
    return found


def names(*paths: str) -> list[str]:
    return sorted(contents(read_data(paths)))


def errors_of(kind: type[UsageError], *paths: str) -> list[str]:
    with pytest.raises(kind) as refused:
        read_data(paths)
    return refused.value.message.split("\n")


def test_without_paths_nothing_is_sent() -> None:
    assert read_data(()) == Data()


def test_a_path_outside_of_the_current_folder_keeps_only_its_last_part(folder: Path) -> None:
    write(folder, {"a/b/c.txt": "c", "d.txt": "d"})
    write(folder.parent, {"up.txt": "u", "far/x/y.txt": "y"})
    assert names("a/b/c.txt", "./d.txt", "../up.txt") == ["a/b/c.txt", "d.txt", "up.txt"]
    assert names("a/./b/") == ["a/b/c.txt"]
    assert names(str(folder.parent / "far")) == ["far/x/y.txt"]
    assert names("../far/x/y.txt") == ["y.txt"]
    assert names(".") == ["a/b/c.txt", "d.txt"]
    assert names("..") == [*sorted(f"{folder.parent.name}/{name}" for name in
                                   ("far/x/y.txt", "here/a/b/c.txt", "here/d.txt", "up.txt"))]  # fmt: skip


def test_content_and_mode_are_kept_for_one_file_and_for_many(folder: Path) -> None:
    write(folder, {f"d/{n}": f"text {n}" for n in range(20)} | {"d/empty": ""})
    (folder / "d/3").chmod(0o755)
    (folder / "d/big").write_bytes(bytes(data.PACKED_BELOW_BYTES))
    found = contents(read_data(["d"]))
    assert found["d/3"] == (b"text 3", True)
    assert found["d/4"] == (b"text 4", False)
    assert found["d/empty"] == (b"", False)
    assert found["d/big"] == (bytes(data.PACKED_BELOW_BYTES), False)
    assert len(found) == 22
    assert [file.name for file in read_data(["d"]).files] == ["d/big"]
    assert contents(read_data(["d/3"])) == {"d/3": (b"text 3", True)}


def test_equal_files_make_equal_archives_and_a_new_file_changes_one(folder: Path) -> None:
    write(folder, {f"d/{n:04}": f"{n}" * 2000 for n in range(2000)})
    before = {pack.sha256 for pack in read_data(["d"]).packs}
    os.utime(folder / "d/0100", (1, 1))
    assert {pack.sha256 for pack in read_data(["d"]).packs} == before
    write(folder, {"d/1000a": "new"})
    after = {pack.sha256 for pack in read_data(["d"]).packs}
    assert len(before) >= 3
    assert len(after - before) <= 2


def test_gitignore_applies_in_every_folder_and_git_folders_are_not_sent(folder: Path) -> None:
    write(
        folder,
        {
            "p/.gitignore": "*.o\nbuild/\n!keep.o\n/top\n",
            "p/a.o": "", "p/keep.o": "", "p/sub/b.o": "", "p/build/x": "", "p/top": "", "p/sub/top": "",
            "p/sub/.gitignore": "!b.o\nsecret\n", "p/sub/secret": "", "p/sub/deep/secret": "",
            "p/.git/config": "", "p/sub/.git": "", "p/src.c": "",
        },
    )  # fmt: skip
    assert names("p") == ["p/.gitignore", "p/keep.o", "p/src.c", "p/sub/.gitignore", "p/sub/b.o", "p/sub/top"]
    assert names("p/a.o") == ["p/a.o"]  # given as an argument


def test_links_out_of_the_folder_are_errors(folder: Path) -> None:
    write(folder, {"d/real": "real", "d/sub/x": "x", "outside": "o"})
    (folder / "d/near").symlink_to("real")
    (folder / "d/dir").symlink_to("sub")
    assert contents(read_data(["d"]))["d/near"] == (b"real", False)
    assert names("d") == ["d/dir/x", "d/near", "d/real", "d/sub/x"]
    (folder / "d/out").symlink_to("../outside")
    (folder / "d/sub/abs").symlink_to("/etc/passwd")
    (folder / "d/broken").symlink_to("nowhere")
    (folder / "d/sub/up").symlink_to("..")
    errors = errors_of(UsageError, "d")
    assert len(errors) == 6, errors  # those of sub are also found through dir
    assert any("d/out" in line and "outside of its folder" in line for line in errors)
    assert any("d/sub/abs" in line and "/etc/passwd" in line for line in errors)
    assert any("d/broken" in line and "a missing file" in line for line in errors)
    assert any("d/sub/up" in line and "a folder that contains it" in line for line in errors)


def test_a_link_given_as_argument_is_followed(folder: Path) -> None:
    write(folder.parent, {"far/x": "x"})
    (folder / "l").symlink_to("../far")
    assert names("l") == ["l/x"]


def test_all_errors_are_reported_together(folder: Path) -> None:
    write(folder, {"a/x": "1", "b/x": "2", "file": "3"})
    write(folder.parent, {"other/a/x": "4", "file/y": "5"})
    os.mkfifo(folder / "a/fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("a/socket")
    errors = errors_of(UsageError, "nowhere", "a", "../other/a", "file", "../file", "file/x")
    text = "\n".join(errors)
    assert "no such file or folder: nowhere (--with)" in errors
    assert "no such file or folder: file/x (--with)" in errors
    assert "a/fifo: is a special file" in text
    assert "a/socket: is a special file" in text
    assert "a/x and ../other/a/x would both become a/x" in text
    assert "both a file and a folder" in text
    assert len(errors) == 6, errors


def test_only_missing_paths_raise_file_missing(folder: Path) -> None:
    assert errors_of(FileMissing, "nowhere", "else") == [
        "no such file or folder: nowhere (--with)",
        "no such file or folder: else (--with)",
    ]


def test_a_file_given_twice_is_sent_once(folder: Path) -> None:
    write(folder, {"d/x": "1"})
    assert names("d", "d/x", "./d/../d/x") == ["d/x"]


def test_a_name_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d/\udcff").touch()
    assert "UTF-8" in errors_of(UsageError, "d")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_are_reported(folder: Path) -> None:
    write(folder, {"d/x": "1", "e/x": "1"})
    (folder / "d/x").chmod(0)
    (folder / "e").chmod(0)
    errors = errors_of(UsageError, "d", "e")
    assert errors == ["d/x: Permission denied (--with)", "e: Permission denied (--with)"]


def test_a_long_list_of_errors_is_cut(folder: Path) -> None:
    (folder / "d").mkdir()
    for number in range(100):
        (folder / f"d/{number:03}").symlink_to("/etc")
    errors = errors_of(UsageError, "d")
    assert errors[-1] == "and 80 more"
    assert len(errors) == 21
