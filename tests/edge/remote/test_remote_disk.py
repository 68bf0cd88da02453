"""Full disks on a node: no run starts that could not be recorded, and no result is lost for lack of space."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sshgrid.errors import NodeUnfit
from tests.edge.shells import ShellNode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount small file systems")
KINDS = ["dash-session", "dash-pidns", "bash-session", "posix-session", "busybox-session"]
NodeOf = Callable[..., ShellNode]
Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """`disk("size=1m")` mounts a small file system."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    """Fill the disk to the last byte."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def use_up_inodes(place: Path) -> list[Path]:
    used: list[Path] = []
    try:
        while True:
            path = place / f"inode{len(used)}"
            path.touch()
            used.append(path)
    except OSError:
        return used


@pytest.mark.parametrize("kind", KINDS)
def test_F24_a_full_disk_refuses_a_start(disk: Disk, node_of: NodeOf, kind: str) -> None:
    place = disk("size=1m")
    node = node_of(kind, place / "w")
    order = node.order(b"echo ran")
    filler = fill(place)
    assert node.start(order).startswith(f"unfit {order.run} ")
    assert not node.dir(order).exists()
    with pytest.raises(NodeUnfit, match="cannot write in the working folder"):
        node.contact()
    filler.unlink()
    node.contact()
    look = node.run(order)
    assert look.record
    assert (look.record.code, node.read(order, "out")) == (0, b"ran\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [0, 1, 2, 3, 4, 5, 6])
def test_F24_a_start_without_inodes_is_refused_and_leaves_nothing(
    disk: Disk, node_of: NodeOf, kind: str, left: int
) -> None:
    place = disk("size=4m,nr_inodes=200")
    node = node_of(kind, place / "w")
    order = node.order(b"echo ran")
    assert node.start(node.order(b"echo ran"), not_after=0).startswith("late"), "the mark of use is made"
    used = use_up_inodes(place)
    for path in used[: left + 1]:
        path.unlink()
    assert node.start(order).startswith(f"unfit {order.run} ")
    assert not node.dir(order).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_F23_a_result_is_recorded_on_a_full_disk(disk: Disk, node_of: NodeOf, kind: str) -> None:
    place = disk("size=2m")
    node = node_of(kind, place / "w")
    order = node.order(b"echo ready; while [ ! -e ../../../../go ]; do sleep 0.02; done; echo more; exit 7")
    node.start(order)
    node.is_running(order, "ready")
    (place / "go").touch()
    fill(place)
    look = node.ended(order)
    assert look.record
    assert (look.record.code, look.record.stage, look.why) == (7, "run", "full")
    assert node.link(order, "rc").startswith("rc=7,")


@pytest.mark.parametrize("kind", KINDS)
def test_F23_a_result_is_recorded_when_no_inode_is_left(disk: Disk, node_of: NodeOf, kind: str) -> None:
    place = disk("size=4m,nr_inodes=200")
    node = node_of(kind, place / "w")
    go = node.folder / "go"
    order = node.order(b"echo ready; while [ ! -e '%s' ]; do sleep 0.02; done; exit 7" % os.fsencode(go))
    node.start(order)
    node.is_running(order, "ready")
    used = use_up_inodes(place)
    go.touch()
    look = node.ended(order)
    assert look.record
    assert (look.record.code, look.record.stage) == (7, "run")
    assert not node.link(order, "rc")
    for path in used:
        path.unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", range(7))
def test_F23_wherever_the_inodes_end_no_result_is_invented(disk: Disk, node_of: NodeOf, kind: str, left: int) -> None:
    """The wrapper has inodes for some of its links only: it reports that, or the exit code is right."""
    place = disk("size=4m,nr_inodes=200")
    node = node_of(kind, place / "w")
    order = node.order(b"exit 7")
    assert node.start(order, verb="prepare") == f"claimed {order.run}"
    used = use_up_inodes(place)
    for path in used[:left]:
        path.unlink()
    node.verb("launch", order.run)
    look = node.ended(order)
    assert look.record, "it is noticed without waiting for anything"
    assert (look.record.code, look.record.stage) in ((7, "run"), (74, "layout"), (70, "start"))
    if look.record.stage != "run":
        assert node.read(order, "out") == b""
    for path in used[left:]:
        path.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_during_compilation_is_reported(disk: Disk, node_of: NodeOf, kind: str) -> None:
    place = disk("size=2m")
    node = node_of(kind, place / "w")
    order = node.order(
        b"", compiler=(("/bin/sh", "-c", "exec /usr/bin/head -c 9M /dev/zero >exe"),), run=(b"{dir}/exe",)
    )
    look = node.run(order)
    assert look.record
    assert (look.record.code, look.record.stage) == (1, "build")
    assert b"No space left on device" in node.read(order, "build.log")
    assert not [path for path in (node.workdir / "builds").iterdir() if path.is_dir()], "the room is given back"


@pytest.mark.parametrize("kind", ["dash-session", "busybox-session"])
def test_a_read_only_working_folder_is_reported(disk: Disk, node_of: NodeOf, kind: str) -> None:
    place = disk("size=1m")
    node = node_of(kind, place / "w")
    order = node.order(b"echo ran")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    with pytest.raises(NodeUnfit, match=r"cannot write in the working folder .*\(disk full or read-only\)"):
        node.contact()
    assert node.start(order).startswith("unfit ")
    assert node.verb("claim", "ab-1.1") == b"unfit\n"
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    node.contact()


@pytest.mark.parametrize("kind", ["dash-session", "busybox-session"])
def test_a_working_folder_mounted_noexec_is_reported(disk: Disk, node_of: NodeOf, kind: str) -> None:
    """Otherwise every compiled program would end with 126, like an exit code of its own."""
    place = disk("size=1m")
    node = node_of(kind, place / "w")
    subprocess.run(["mount", "-o", "remount,noexec", place], check=True)
    with pytest.raises(NodeUnfit, match=r"programs cannot run in the working folder .*: set workdir"):
        node.contact()
    subprocess.run(["mount", "-o", "remount,exec", place], check=True)
    node.contact()
