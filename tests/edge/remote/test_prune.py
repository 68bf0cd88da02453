"""The cache of a node is pruned by age and size, never what a run needs."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sshgrid.model import Node
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.link import Link

DAY = 86_400.0
OLD, TODAY, NOW = 20 * DAY, 2 * 3600.0, 0.0  # ages in seconds
A, B, C, D, E, F = (letter * 64 for letter in "abcdef")


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    node = Node("here", connection="local", workdir=str(tmp_path / "work"))
    link = await Link.open(node, Dialing(), (), lambda _: None)
    yield link
    await link.close()


def put(path: Path, age_seconds: float, size: int = 10) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    at = time.time() - age_seconds
    os.utime(path, (at, at))


def build(workdir: Path, key: str, *, made: float, used: float) -> None:
    put(workdir / "builds" / key / "exe", made)
    at = time.time() - made
    os.utime(workdir / "builds" / key, (at, at))
    put(workdir / "builds" / f"{key}.used", used)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_old_files_are_removed_and_used_ones_stay(link: Link) -> None:
    work = Path(link.facts.workdir)
    put(work / "objects" / A, OLD)
    put(work / "objects" / B, OLD)
    build(work, C, made=OLD, used=NOW)
    build(work, D, made=OLD, used=OLD)
    put(work / "builds" / f"{E}.used", OLD)
    put(work / "runs" / "0-1.1" / "job.sh", NOW)
    (work / "runs" / "0-1.1" / "job.sh").write_text(f"BUILD={F}\nlayout() {{\n  place {B} a.c 644\n}}\n")
    await link.maintenance.prune(14, 1 << 30)
    assert names(work / "objects") == [B]
    assert names(work / "builds") == [C, f"{C}.used"]


async def test_least_recently_used_files_above_the_size_are_removed_first(link: Link) -> None:
    work = Path(link.facts.workdir)
    for name, age in ((A, TODAY + 600), (B, TODAY), (C, NOW)):
        put(work / "objects" / name, age, 3 << 20)
    await link.maintenance.prune(14, 7 << 20)
    assert names(work / "objects") == [B, C]


async def test_files_used_within_the_hour_stay_above_the_size(link: Link) -> None:
    work = Path(link.facts.workdir)
    put(work / "objects" / A, NOW, 3 << 20)
    await link.maintenance.prune(14, 1 << 20)
    assert names(work / "objects") == [A]


async def test_F25_part_of_a_cut_upload_is_removed_and_one_in_progress_stays(link: Link) -> None:
    work = Path(link.facts.workdir)
    put(work / "objects" / "0123456789abcdef.0a0b", TODAY)
    put(work / "objects" / "0123456789abcdef.0c0d", NOW)
    await link.maintenance.prune(14, 1 << 30)
    assert names(work / "objects") == ["0123456789abcdef.0c0d"]


async def test_prune_leaves_no_files_of_its_own(link: Link) -> None:
    work = Path(link.facts.workdir)
    before = names(work)
    await link.maintenance.prune(14, 0)
    assert names(work) == before
