"""What `--with` takes along: names, .gitignore, links, and small files together. Every mistake is said at once."""

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
    """Everything that would lie in the run's folder."""
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


def complaints(kind: type[UsageError], *paths: str) -> list[str]:
    with pytest.raises(kind) as refused:
        read_data(paths)
    return refused.value.message.split("\n")


def test_without_paths_nothing_travels() -> None:
    assert read_data(()) == Data()


def test_a_path_keeps_its_name_below_the_current_folder_and_only_its_last_part_elsewhere(folder: Path) -> None:
    write(folder, {"a/b/c.txt": "c", "d.txt": "d"})
    write(folder.parent, {"up.txt": "u", "far/x/y.txt": "y"})
    assert names("a/b/c.txt", "./d.txt", "../up.txt") == ["a/b/c.txt", "d.txt", "up.txt"]
    assert names("a/./b/") == ["a/b/c.txt"]
    assert names(str(folder.parent / "far")) == ["far/x/y.txt"]
    assert names("../far/x/y.txt") == ["y.txt"]
    assert names(".") == ["a/b/c.txt", "d.txt"]
    assert names("..") == [*sorted(f"{folder.parent.name}/{name}" for name in
                                   ("far/x/y.txt", "here/a/b/c.txt", "here/d.txt", "up.txt"))]  # fmt: skip


def test_content_and_mode_arrive_for_one_and_for_many(folder: Path) -> None:
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


def test_the_same_files_make_the_same_packs_and_one_more_changes_one_of_them(folder: Path) -> None:
    write(folder, {f"d/{n:04}": f"{n}" * 2000 for n in range(2000)})
    before = {pack.sha256 for pack in read_data(["d"]).packs}
    os.utime(folder / "d/0100", (1, 1))
    assert {pack.sha256 for pack in read_data(["d"]).packs} == before
    write(folder, {"d/1000a": "new"})
    after = {pack.sha256 for pack in read_data(["d"]).packs}
    assert len(before) >= 3
    assert len(after - before) <= 2


def test_gitignore_is_respected_in_every_folder_and_git_itself_never_travels(folder: Path) -> None:
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
    assert names("p/a.o") == ["p/a.o"]  # named by its owner


def test_links_inside_are_followed_and_those_that_lead_out_are_named(folder: Path) -> None:
    write(folder, {"d/real": "real", "d/sub/x": "x", "outside": "o"})
    (folder / "d/near").symlink_to("real")
    (folder / "d/dir").symlink_to("sub")
    assert contents(read_data(["d"]))["d/near"] == (b"real", False)
    assert names("d") == ["d/dir/x", "d/near", "d/real", "d/sub/x"]
    (folder / "d/out").symlink_to("../outside")
    (folder / "d/sub/abs").symlink_to("/etc/passwd")
    (folder / "d/broken").symlink_to("nowhere")
    (folder / "d/sub/up").symlink_to("..")
    said = complaints(UsageError, "d")
    assert len(said) == 6, said  # those of sub are met by way of dir, too
    assert any("d/out" in line and "outside of its folder" in line for line in said)
    assert any("d/sub/abs" in line and "/etc/passwd" in line for line in said)
    assert any("d/broken" in line and "a missing file" in line for line in said)
    assert any("d/sub/up" in line and "a folder that contains it" in line for line in said)


def test_a_link_that_is_named_itself_is_what_it_leads_to(folder: Path) -> None:
    write(folder.parent, {"far/x": "x"})
    (folder / "l").symlink_to("../far")
    assert names("l") == ["l/x"]


def test_everything_that_is_wrong_is_said_at_once(folder: Path) -> None:
    write(folder, {"a/x": "1", "b/x": "2", "file": "3"})
    write(folder.parent, {"other/a/x": "4", "file/y": "5"})
    os.mkfifo(folder / "a/fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("a/socket")
    said = complaints(UsageError, "nowhere", "a", "../other/a", "file", "../file", "file/x")
    text = "\n".join(said)
    assert "no such file or folder: nowhere (--with)" in said
    assert "no such file or folder: file/x (--with)" in said
    assert "a/fifo: is a special file" in text
    assert "a/socket: is a special file" in text
    assert "a/x and ../other/a/x would both become a/x" in text
    assert "both a file and a folder" in text
    assert len(said) == 6, said


def test_a_missing_path_alone_is_a_missing_file(folder: Path) -> None:
    assert complaints(FileMissing, "nowhere", "else") == [
        "no such file or folder: nowhere (--with)",
        "no such file or folder: else (--with)",
    ]


def test_the_same_file_named_twice_is_one(folder: Path) -> None:
    write(folder, {"d/x": "1"})
    assert names("d", "d/x", "./d/../d/x") == ["d/x"]


def test_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d/\udcff").touch()
    assert "UTF-8" in complaints(UsageError, "d")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_named(folder: Path) -> None:
    write(folder, {"d/x": "1", "e/x": "1"})
    (folder / "d/x").chmod(0)
    (folder / "e").chmod(0)
    said = complaints(UsageError, "d", "e")
    assert said == ["d/x: Permission denied (--with)", "e: Permission denied (--with)"]


def test_hundreds_of_mistakes_are_not_all_printed(folder: Path) -> None:
    (folder / "d").mkdir()
    for number in range(100):
        (folder / f"d/{number:03}").symlink_to("/etc")
    said = complaints(UsageError, "d")
    assert said[-1] == "and 80 more"
    assert len(said) == 21
