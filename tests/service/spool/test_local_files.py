"""Files of the master's own machine that a client names."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshgrid.clock import Clock
from sshgrid.errors import UsageError
from sshgrid.protocol.messages import TakeFile
from sshgrid.spool.local_files import LocalFiles
from sshgrid.spool.spool import Spool
from sshgrid.testing import until

OLD = 1_700_000_000
# A minute ahead: the timestamps of a file that is written now have settled.
LATER = Clock(lambda: time.time() + 60.0, time.monotonic)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


@pytest.fixture
def copies(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each file that is read."""
    made: list[int] = []
    adopt = spool.blobs.adopt

    def count(descriptor: int, *more: object) -> str:
        made.append(descriptor)
        return adopt(descriptor, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(spool.blobs, "adopt", count)
    return made


def named(path: Path) -> TakeFile:
    return TakeFile.of(str(path), path.stat())


async def test_file_that_many_clients_name_is_read_once(tmp_path: Path, spool: Spool, copies: list[int]) -> None:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(20_000_000))
    local_files = LocalFiles(spool)
    digests = await asyncio.gather(*(local_files.take(named(path)) for _ in range(4)))
    assert set(digests) == {hashlib.sha256(path.read_bytes()).hexdigest()}
    assert spool.blobs.read(digests[0]) == path.read_bytes()
    assert spool.blobs.path(digests[0]).stat().st_mode & 0o777 == 0o600
    assert len(copies) == 1
    assert list(spool.blobs.incoming.iterdir()) == []


async def test_file_is_recognised_only_when_its_timestamps_had_settled(
    tmp_path: Path, spool: Spool, copies: list[int]
) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * 1000)
    later = 0.0
    local_files = LocalFiles(spool, Clock(lambda: time.time() + later, time.monotonic))
    for expected in (1, 2):
        await local_files.take(named(path))
        assert len(copies) == expected, "the file may have been written within the same tick"
    later = 60.0
    for expected in (3, 3):
        await local_files.take(named(path))
        assert len(copies) == expected
    path.write_bytes(b"y" * 1000)
    assert await local_files.take(named(path)) == hashlib.sha256(b"y" * 1000).hexdigest()


async def test_file_that_the_spool_has_lost_is_read_again(tmp_path: Path, spool: Spool, copies: list[int]) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x")
    local_files = LocalFiles(spool, LATER)
    spool.blobs.path(await local_files.take(named(path))).unlink()
    assert spool.blobs.has(await local_files.take(named(path)))
    assert len(copies) == 2


@pytest.mark.parametrize("trick", ["changed", "gone", "folder", "fifo"])
async def test_file_that_differs_from_the_one_the_client_saw_is_refused(
    tmp_path: Path, spool: Spool, trick: str
) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x")
    seen = named(path)
    path.unlink()
    match trick:
        case "changed":
            path.write_bytes(b"y")
            os.utime(path, (OLD, OLD))
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    with pytest.raises(UsageError, match=r"changed|cannot read"):
        await LocalFiles(spool).take(seen)
    assert list(spool.blobs.incoming.iterdir()) == []


async def test_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * 1000)
    adopt = spool.blobs.adopt

    def meanwhile(descriptor: int, *more: object) -> str:
        found = adopt(descriptor, *more)  # type: ignore[arg-type]
        with path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(spool.blobs, "adopt", meanwhile)
    with pytest.raises(UsageError, match="changed while it was read"):
        await LocalFiles(spool).take(named(path))


async def test_master_that_stops_ends_a_long_copy(tmp_path: Path, spool: Spool) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    local_files = LocalFiles(spool)
    taking = asyncio.create_task(local_files.take(named(path)))
    await until(lambda: any(copy.stat().st_size for copy in spool.blobs.incoming.iterdir()))
    await local_files.close()
    with pytest.raises(UsageError, match="is stopping"):
        await taking
    assert list(spool.blobs.incoming.iterdir()) == []


async def test_file_that_another_process_can_write_is_not_recognised(
    tmp_path: Path, spool: Spool, copies: list[int]
) -> None:
    """A write to a mapped page that is dirty already does not change the timestamps."""
    path = tmp_path / "big"
    path.write_bytes(bytes(8192))
    local_files = LocalFiles(spool, LATER)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        for content in (b"one", b"two"):
            mapped[:3] = content
            sha256 = await local_files.take(named(path))
            assert spool.blobs.read(sha256)[:3] == content
    assert len(copies) == 2
    for _ in range(2):
        await local_files.take(named(path))
    assert len(copies) == 3, "the file has no writer any more"


async def test_file_with_fewer_bytes_than_its_size_is_refused(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.19 the kernel copies nothing from files that it generates."""
    path = tmp_path / "big"
    path.write_bytes(b"x" * 1000)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with pytest.raises(UsageError, match="0 bytes were read"):
        await LocalFiles(spool).take(named(path))
    assert list(spool.blobs.incoming.iterdir()) == []
