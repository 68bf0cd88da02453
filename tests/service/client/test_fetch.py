"""From the archive of a node that need not be trusted into a person's folder: nothing else is touched."""

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

Said = list[tuple[str, int, bool]]


class Ear:
    def __init__(self) -> None:
        self.said: Said = []

    def fetched(self, name: str, size: int, replaced: bool) -> None:
        self.said.append((name, size, replaced))


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


def fetch(into: Path, content: bytes, *globs: str, size: int = 1000, files: int = 0) -> tuple[Said, list[str]]:
    """What was said of files, and what was complained of."""
    ear, wrong = Ear(), list[str]()
    try:
        unpack(job(*globs, files=files), pieces(content, size), str(into), ear)
    except NotFetched as error:
        wrong = error.message.split("\n")
    return ear.said, wrong


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [1, 511, 10**6])
def test_files_lie_where_they_were_with_their_bytes(tmp_path: Path, size: int) -> None:
    long = "l" * 200 + "/" + "m" * 200
    content = archive(("./a b", b"\0\xff"), ("./deep/er/x", b"y" * 3000), (f"./{long}", b"long"), ("./empty", b""))
    said, wrong = fetch(tmp_path / "new/into", content, size=size)
    assert wrong == []
    assert below(tmp_path / "new/into") == {"a b": b"\0\xff", "deep/er/x": b"y" * 3000, long: b"long", "empty": b""}
    assert said[1] == (str(tmp_path / "new/into/deep/er/x"), 3000, False)


def test_a_file_of_before_is_replaced_whole_and_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("much longer than what comes")
    said, wrong = fetch(tmp_path, archive(("./a", b"new"), ("./b", b"")))
    assert (below(tmp_path), wrong) == ({"a": b"new", "b": b""}, [])
    assert [each[2] for each in said] == [True, False]


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/../../out", "./../out", "a\nb", "a\x1b[2Jb", "..", "a//b", "x" * 300, "\udcff"]
)
def test_A23_a_name_that_leads_out_or_plays_tricks_is_left_out_and_the_rest_comes(tmp_path: Path, name: str) -> None:
    into = tmp_path / "into"
    said, wrong = fetch(into, archive((name, b"bad"), ("./good", b"good")))
    assert below(tmp_path) == {"into/good": b"good"}
    assert len(said) == len(wrong) == 1
    assert wrong[0].isprintable()


def test_A23_what_was_not_asked_for_is_left_out(tmp_path: Path) -> None:
    _, wrong = fetch(tmp_path, archive(("./.bashrc", b"bad"), ("./out/x", b"x")), "out/*")
    assert below(tmp_path) == {"out/x": b"x"}
    assert wrong == [".bashrc does not match --fetch: skipped"]


def test_A24_A25_links_and_special_files_of_an_archive_are_never_made(tmp_path: Path) -> None:
    content = archive(
        special("./link", tarfile.SYMTYPE, linkname="/etc"),
        ("./link/passwd", b"bad"),
        special("./fifo", tarfile.FIFOTYPE),
        special("./disk", tarfile.CHRTYPE, devmajor=1, devminor=1),
        special("./sparse", tarfile.GNUTYPE_SPARSE),
        special("./hard", tarfile.LNKTYPE, linkname="/etc/passwd"),
        special("./hard2", tarfile.LNKTYPE, linkname="./never"),
    )
    _, wrong = fetch(tmp_path / "into", content)
    assert below(tmp_path) == {"into/link/passwd": b"bad"}
    assert (tmp_path / "into/link").is_dir()
    assert not (tmp_path / "into/link").is_symlink()
    assert len(wrong) == 6


def test_one_file_under_two_names_comes_twice(tmp_path: Path) -> None:
    content = archive(("./a", b"same"), special("./deep/b", tarfile.LNKTYPE, linkname="./a"))
    said, wrong = fetch(tmp_path, content)
    assert (below(tmp_path), wrong) == ({"a": b"same", "deep/b": b"same"}, [])
    assert said[1][1] == 4


def test_nothing_is_written_through_links_of_the_folder_nor_over_what_is_no_file(tmp_path: Path) -> None:
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
    said, wrong = fetch(into, archive(*((f"./{name}", b"bad") for name in bad), ("./good", b"good")))
    assert below(away) == {"kept": b"kept"}
    assert [name for name, _, _ in said] == [str(into / "good")]
    assert len(wrong) == len(bad)
    assert (into / "filelink").is_symlink()
    assert sorted(os.listdir(into)) == ["dirlink", "fifo", "file", "filelink", "folder", "good"]  # noqa: PTH208


def test_the_folder_itself_may_be_a_link_of_its_owner(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "into").symlink_to("real")
    assert fetch(tmp_path / "into", archive(("./a", b"a")))[1] == []
    assert below(tmp_path / "real") == {"a": b"a"}


def test_a_place_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said, wrong = fetch(tmp_path / "file", archive(("./a", b"a")))
    assert (said, len(wrong)) == ([], 1)
    assert "--into" in wrong[0]


@pytest.mark.parametrize(("cut", "kept"), [(100, ""), (700, ""), (1536, "a"), (1600, "a"), (2600, "a"), (3072, "ab")])
def test_an_archive_that_ends_early_gives_what_is_whole_and_the_rest_is_missed(
    tmp_path: Path, cut: int, kept: str
) -> None:
    content = archive(("./a", b"a" * 600), ("./b", b"b" * 600))
    _, wrong = fetch(tmp_path, content[:cut], files=2)
    assert below(tmp_path) == {name: name.encode() * 600 for name in kept}
    assert len(wrong) == (kept != "ab")


def test_the_error_says_how_to_get_the_files_again(tmp_path: Path) -> None:
    with pytest.raises(NotFetched) as refused:
        unpack(job(), pieces(b"noise" * 1000), str(tmp_path), Ear())
    assert refused.value.hint == "sshgrid attach 7 --into DIR"


def test_noise_instead_of_an_archive_is_told(tmp_path: Path) -> None:
    said, wrong = fetch(tmp_path, b"noise" * 1000)
    assert (said, below(tmp_path), len(wrong)) == ([], {}, 1)
