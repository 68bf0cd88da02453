"""A process that not even KILL can end, because it waits for a disk that does not answer: the kernel's state D."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edge.shells import ShellNode
from tests.lab.machine import state_of, wait_until

TOOLS = ("mkfs.ext4", "fsfreeze", "mount", "umount")
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason=f"needs root and {', '.join(TOOLS)}"
)


class Disk:
    """A file system on which every writer can be made to wait."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "disk"
        self.place.mkdir()
        image = folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(self.place)], check=True)

    def freeze(self) -> None:
        subprocess.run(["fsfreeze", "-f", str(self.place)], check=True)

    def thaw(self) -> None:
        subprocess.run(["fsfreeze", "-u", str(self.place)], check=False, capture_output=True)

    def end(self) -> None:
        self.thaw()
        subprocess.run(["umount", "-l", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.end()


def stuck(node: ShellNode) -> bool:
    return any(state_of(pid) == "D" for pid in node.processes())


@pytest.mark.parametrize("kind", ["dash-session", "dash-pidns"])
def test_F40_a_process_that_cannot_be_killed_ends_once_its_disk_answers(
    node_of: Callable[..., ShellNode], disk: Disk, kind: str
) -> None:
    node = node_of(kind)
    order = node.order(b'echo ready; until [ -e ../go ]; do sleep 0.02; done; echo x >"$1/x"', str(disk.place).encode())
    node.start(order)
    node.is_running(order, "ready")
    disk.freeze()
    try:
        (node.dir(order) / "go").touch()
        wait_until(lambda: stuck(node), "a process that waits for the disk", 10, node.processes)
        assert node.verb("signal", order.run, "KILL") == b"sent\n"
        assert stuck(node)
        if node.facts.isolation == "pidns":
            # The namespace has lost its first process: its other processes can only end.
            assert node.ended(order).record
        else:
            assert (node.look(order.run).alive, node.look(order.run).record) == (True, None)
        assert node.verb("clean", order.run, seconds=60) == b""
        assert stuck(node)
    finally:
        disk.thaw()
    wait_until(lambda: not node.processes(), "every process to be gone", 10, node.processes)
