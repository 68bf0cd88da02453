"""From the archive of a node that need not be trusted into a folder of the user: nothing else is changed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sshgrid.client.fetch import NotFetched, unpack
from sshgrid.model import Fetched, JobId
from sshgrid.protocol.messages import JobLine

Written = list[tuple[str, int, bool]]


class Listener:
    def __init__(self) -> None:
        self.written: Written = []

    def fetched(self, name: str, size: int, replaced: bool) -> None:
        self.written.append((name, size, replaced))


def job(*globs: str, files: int = 0) -> JobLine:
    rest = ("", "COMPLETED", "", "n1", 1, 3, 0.0, 0.0, 0.0, 0, None, "", 0)
    return JobLine(JobId(7), "ann", "x", *rest, fetch=globs or (".",), fetched=Fetched(files))


def archive(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for each in members:
            if isinstance(each, tarfile.TarInfo):
                tar.addfile(each)
            else:
                member = tarfile.TarInfo(each[0])
                member.size = len(each[1])
                tar.addfile(member, io.BytesIO(each[1]))
    return made.getvalue()


def special(name: str, kind: bytes, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def pieces(content: bytes, size: int = 1000) -> Iterator[bytes]:
    yield from (content[start : start + size] for start in range(0, len(content), size))


def fetch(into: Path, content: bytes, *globs: str, size: int = 1000, files: int = 0) -> tuple[Written, list[str]]:
    """The written files, and the errors."""
    listener, errors = Listener(), list[str]()
    try:
        unpack(job(*globs, files=files), pieces(content, size), str(into), listener)
    except NotFetched as error:
        errors = error.message.split("\n")
    return listener.written, errors


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [1, 511, 10**6])
def test_files_are_written_to_their_paths(tmp_path: Path, size: int) -> None:
    long = "l" * 200 + "/" + "m" * 200
    content = archive(("./a b", b"\0\xff"), ("./deep/er/x", b"y" * 3000), (f"./{long}", b"long"), ("./empty", b""))
    written, errors = fetch(tmp_path / "new/into", content, size=size)
    assert errors == []
    assert below(tmp_path / "new/into") == {"a b": b"\0\xff", "deep/er/x": b"y" * 3000, long: b"long", "empty": b""}
    assert written[1] == (str(tmp_path / "new/into/deep/er/x"), 3000, False)


def test_an_existing_file_is_replaced_and_reported(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("much longer than what comes")
    written, errors = fetch(tmp_path, archive(("./a", b"new"), ("./b", b"")))
    assert (below(tmp_path), errors) == ({"a": b"new", "b": b""}, [])
    assert [each[2] for each in written] == [True, False]


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/../../out", "./../out", "a\nb", "a\x1b[2Jb", "..", "a//b", "x" * 300, "\udcff"]
)
def test_A23_unsafe_names_are_skipped_and_the_others_are_written(tmp_path: Path, name: str) -> None:
    into = tmp_path / "into"
    written, errors = fetch(into, archive((name, b"bad"), ("./good", b"good")))
    assert below(tmp_path) == {"into/good": b"good"}
    assert len(written) == len(errors) == 1
    assert errors[0].isprintable()


def test_A23_files_that_were_not_requested_are_skipped(tmp_path: Path) -> None:
    _, errors = fetch(tmp_path, archive(("./.bashrc", b"bad"), ("./out/x", b"x")), "out/*")
    assert below(tmp_path) == {"out/x": b"x"}
    assert errors == [".bashrc does not match --fetch: skipped"]


def test_A24_A25_links_and_special_files_of_an_archive_are_never_created(tmp_path: Path) -> None:
    content = archive(
        special("./link", tarfile.SYMTYPE, linkname="/etc"),
        ("./link/passwd", b"bad"),
        special("./fifo", tarfile.FIFOTYPE),
        special("./disk", tarfile.CHRTYPE, devmajor=1, devminor=1),
        special("./sparse", tarfile.GNUTYPE_SPARSE),
        special("./hard", tarfile.LNKTYPE, linkname="/etc/passwd"),
        special("./hard2", tarfile.LNKTYPE, linkname="./never"),
    )
    _, errors = fetch(tmp_path / "into", content)
    assert below(tmp_path) == {"into/link/passwd": b"bad"}
    assert (tmp_path / "into/link").is_dir()
    assert not (tmp_path / "into/link").is_symlink()
    assert len(errors) == 6


def test_a_hard_link_is_written_as_a_copy(tmp_path: Path) -> None:
    content = archive(("./a", b"same"), special("./deep/b", tarfile.LNKTYPE, linkname="./a"))
    written, errors = fetch(tmp_path, content)
    assert (below(tmp_path), errors) == ({"a": b"same", "deep/b": b"same"}, [])
    assert written[1][1] == 4


def test_links_are_not_followed_and_only_regular_files_are_replaced(tmp_path: Path) -> None:
    away, into = tmp_path / "away", tmp_path / "into"
    away.mkdir()
    into.mkdir()
    (away / "kept").write_text("kept")
    (into / "dirlink").symlink_to(away)
    (into / "filelink").symlink_to(away / "kept")
    (into / "file").write_text("a file")
    (into / "folder").mkdir()
    os.mkfifo(into / "fifo")
    bad = ["dirlink/x", "filelink", "file/x", "folder", "fifo"]
    written, errors = fetch(into, archive(*((f"./{name}", b"bad") for name in bad), ("./good", b"good")))
    assert below(away) == {"kept": b"kept"}
    assert [name for name, _, _ in written] == [str(into / "good")]
    assert len(errors) == len(bad)
    assert (into / "filelink").is_symlink()
    assert sorted(os.listdir(into)) == ["dirlink", "fifo", "file", "filelink", "folder", "good"]  # noqa: PTH208


def test_the_folder_itself_can_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "into").symlink_to("real")
    assert fetch(tmp_path / "into", archive(("./a", b"a")))[1] == []
    assert below(tmp_path / "real") == {"a": b"a"}


def test_a_target_that_is_not_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    written, errors = fetch(tmp_path / "file", archive(("./a", b"a")))
    assert (written, len(errors)) == ([], 1)
    assert "--into" in errors[0]


@pytest.mark.parametrize(("cut", "kept"), [(100, ""), (700, ""), (1536, "a"), (1600, "a"), (2600, "a"), (3072, "ab")])
def test_a_truncated_archive_gives_its_complete_files_and_an_error(tmp_path: Path, cut: int, kept: str) -> None:
    content = archive(("./a", b"a" * 600), ("./b", b"b" * 600))
    _, errors = fetch(tmp_path, content[:cut], files=2)
    assert below(tmp_path) == {name: name.encode() * 600 for name in kept}
    assert len(errors) == (kept != "ab")


def test_the_hint_tells_how_to_fetch_the_files_again(tmp_path: Path) -> None:
    with pytest.raises(NotFetched) as refused:
        unpack(job(), pieces(b"noise" * 1000), str(tmp_path), Listener())
    assert refused.value.hint == "sshgrid attach 7 --into DIR"


def test_random_bytes_instead_of_an_archive_are_an_error(tmp_path: Path) -> None:
    written, errors = fetch(tmp_path, b"noise" * 1000)
    assert (written, below(tmp_path), len(errors)) == ([], {}, 1)
