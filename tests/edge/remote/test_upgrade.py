"""What an earlier version of sshgrid left on a node is read and cleaned: names in the working folder are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from sshgrid.ssh.parsers import TaskEnd
from tests.edge.shells import ShellNode

CHECK = "sh\tfingerprint\t1.0\t"
RUN, BATCH = "c0ffee00-7.1", "c0ffee00-b1_1.1"
RECORD = "rc=3,stage=run,began=10.00,ended=12.50,cpu=0m0.01s+0m0.02s,peak=4096"


@pytest.fixture
def node(tmp_path: Path) -> ShellNode:
    node = ShellNode(tmp_path / "node", "dash", "session")
    (node.workdir / "runs").mkdir(parents=True, exist_ok=True)
    return node


def old_folder(node: ShellNode, run: str, job: str) -> Path:
    """A run folder whose wrapper has ended, with a job.sh for functions that no longer exist."""
    folder = node.workdir / "runs" / run
    (folder / "work").mkdir(parents=True)
    (folder / "job.sh").write_text(job)
    (folder / "pid").symlink_to(f"pid=1,start=1,boot={node.facts.boot_id}-before")
    for name in ("out", "err", "wrapper.log", "running"):
        (folder / name).write_text("")
    (folder / "record").write_text(f"{'program':255}\n")
    return folder


def test_a_run_that_ended_before_the_upgrade_is_read_and_cleaned(node: ShellNode) -> None:
    folder = old_folder(node, RUN, "KEEP_CHILDREN=0\nlayout() { place a b 644 || return; }\n")
    (folder / "out").write_text("printed\n")
    (folder / "rc").symlink_to(RECORD)
    look = node.look(RUN)
    assert look.record is not None
    assert (look.record.code, look.record.stage, look.sizes["out"]) == (3, "run", 8)
    assert node.verb("clean", RUN) == b""
    assert not folder.exists()


def test_a_batch_that_ended_before_the_upgrade_is_read(node: ShellNode) -> None:
    folder = old_folder(node, BATCH, "LANES=1\nTASKS=1\nLINGERS=1\ntask 1_1.1 - '' sh\n")
    lines = ["begin 1_1.1 1 10.00", f"end 1_1.1 1 o - {RECORD}"]
    (folder / "ledger").write_text("".join(f"{line:126}.\n" for line in lines))
    (folder / "1_1.1.out").write_text("printed\n")
    (folder / "rc").symlink_to(RECORD)
    look = node.batch_status(BATCH)
    (end,) = look.ended
    assert isinstance(end, TaskEnd)
    assert (end.task, end.record.code, end.small) == ("1_1.1", 3, {"out": b"printed\n"})


def test_checks_of_toolchains_move_to_the_new_folder(node: ShellNode) -> None:
    checks = node.workdir / "checks"
    for entry in checks.iterdir():
        entry.unlink()
    checks.rmdir()
    (node.workdir / "proofs").mkdir()
    (node.workdir / "proofs" / "abc").write_text(f"{CHECK}\n")
    assert node.contact().checks == (CHECK,)
    assert [path.name for path in checks.iterdir()] == ["abc"]
    assert not (node.workdir / "proofs").exists()
