"""The inventory as a real file: what load refuses, and that edits are atomic, durable and never lose one another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sshgrid import inventory
from sshgrid.errors import InventoryError, UsageError
from sshgrid.inventory.edit import add_node, edit_file, remove_nodes, set_drained

TEXT = "# ours\nnodes:\n  a: {}   # first\n  b: {}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.yaml"
    path.write_text(TEXT)
    return path


def names(path: Path) -> list[str]:
    return [node.name for node in inventory.load(path).nodes]


def left_over(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir() if other != path)


# --- load -------------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_an_inventory_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="no such file") as caught:
        inventory.load(tmp_path / "none.yaml")
    assert caught.value.hint.startswith("sshgrid node add")


def test_what_is_no_regular_file_is_refused_and_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InventoryError, match="not a regular file"):
            inventory.load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_an_inventory_error(file: Path) -> None:
    file.chmod(0)
    with pytest.raises(InventoryError, match="Permission denied"):
        inventory.load(file)


def test_A1_a_huge_file_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as huge:
        huge.truncate(1 << 40)
    with pytest.raises(InventoryError, match="larger than 1024 KiB"):
        inventory.load(path)


def test_errors_name_the_file_as_it_was_given(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("nodes:\n  a: {hosts: x}\n")
    monkeypatch.chdir(file.parent)
    with pytest.raises(InventoryError, match=r"^inventory\.yaml:2:7: "):
        inventory.load(Path("inventory.yaml"))


# --- edit -------------------------------------------------------------------------------------------------------------


def test_an_edit_keeps_mode_and_comments_and_leaves_nothing_behind(file: Path) -> None:
    file.chmod(0o640)
    edit_file(file, lambda text: add_node(text, "c", {"host": "h"}))
    assert file.read_text() == TEXT + "  c: {host: h}\n"
    assert file.stat().st_mode & 0o7777 == 0o640
    assert left_over(file) == []
    edit_file(file, lambda text: remove_nodes(text, ["c"]))
    assert file.read_text() == TEXT


def test_an_edit_keeps_windows_line_endings(file: Path) -> None:
    file.write_bytes(TEXT.replace("\n", "\r\n").encode())
    edit_file(file, lambda text: set_drained(text, ["a"], drained=True))
    assert file.read_bytes() == TEXT.replace("a: {}", "a: {drained: true}").replace("\n", "\r\n").encode()


def test_an_edit_through_a_link_changes_the_target_and_keeps_the_link(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link = folder / "link.yaml"
    link.symlink_to("../inventory.yaml")
    edit_file(link, lambda text: add_node(text, "c", {}))
    assert link.is_symlink()
    assert not file.is_symlink()
    assert names(file) == names(link) == ["a", "b", "c"]
    assert left_over(link) == []


def test_an_edit_that_changes_nothing_does_not_touch_the_file(file: Path) -> None:
    before = file.stat()
    edit_file(file, lambda text: set_drained(text, ["a"], drained=False))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("result", ["nodes: {}\n", "", "nodes:\n  a: {hosts: x}\n", "nodes: [\n"])
def test_an_edit_that_breaks_the_file_is_refused_and_the_file_stays(file: Path, result: str) -> None:
    with pytest.raises(InventoryError):
        edit_file(file, lambda _: result)
    assert file.read_text() == TEXT
    assert left_over(file) == []


def test_a_broken_file_is_not_edited_and_its_errors_carry_its_name(file: Path) -> None:
    file.write_text("nodes:\n  a: {hosts: x}\n")
    with pytest.raises(InventoryError) as caught:
        edit_file(file, lambda text: add_node(text, "c", {}))
    assert caught.value.message.startswith(f"{file}:2:7: ")


def test_a_change_that_raises_leaves_the_file_and_lets_go_of_the_lock(file: Path) -> None:
    def change(text: str) -> str:
        raise UsageError("not today")

    for _ in range(2):
        with pytest.raises(UsageError, match="not today"):
            edit_file(file, change)
    assert file.read_text() == TEXT


def test_a_missing_file_is_made_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    with pytest.raises(InventoryError, match="no such file"):
        edit_file(path, lambda text: add_node(text, "a", {}))
    edit_file(path, lambda text: add_node(text, "a", {}), create=True)
    assert names(path) == ["a"]
    assert path.stat().st_mode & 0o022 == 0
    edit_file(path, lambda text: add_node(text, "b", {}), create=True)
    assert names(path) == ["a", "b"]


def test_a_missing_folder_is_an_inventory_error(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="No such file or directory"):
        edit_file(tmp_path / "none" / "inventory.yaml", lambda text: text, create=True)


def test_an_editor_that_saves_meanwhile_loses_nothing(file: Path) -> None:
    """It knows no lock: the change is applied again to what it wrote."""
    saved = iter(["# saved by hand\n" + TEXT])

    def change(text: str) -> str:
        if by_hand := next(saved, ""):
            file.write_text(by_hand)
        return add_node(text, "c", {})

    edit_file(file, change)
    assert file.read_text() == "# saved by hand\n" + TEXT + "  c: {}\n"


def test_a_file_that_never_stands_still_is_given_up_with_a_sentence(file: Path) -> None:
    count = iter(range(100))

    def change(text: str) -> str:
        file.write_text(TEXT + f"# {next(count)}\n")
        return add_node(text, "c", {})

    with pytest.raises(UsageError, match="something else keeps changing the file"):
        edit_file(file, change)
    assert left_over(file) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everything")
def test_a_read_only_file_is_not_replaced(file: Path) -> None:
    file.chmod(0o444)
    with pytest.raises(UsageError, match="read-only"):
        edit_file(file, lambda text: add_node(text, "c", {}))


def test_edits_of_many_threads_do_not_lose_one_another(file: Path) -> None:
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            edit_file(file, lambda text: add_node(text, name, {}))
            edit_file(file, lambda text: set_drained(text, [name], drained=True))
        except UsageError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(names(file)) == sorted(["a", "b", *(f"t{number}" for number in range(16))])
    assert sum(node.drained for node in inventory.load(file).nodes) == 16
    assert left_over(file) == []


WORKER = """
import sys
from pathlib import Path
from sshgrid.inventory.edit import add_node, edit_file, remove_nodes
path, name = Path(sys.argv[1]), sys.argv[2]
for number in range(8):
    edit_file(path, lambda text: add_node(text, f"{name}{number}", {"host": "h"}))
    if number % 2:
        edit_file(path, lambda text: remove_nodes(text, [f"{name}{number}"]))
"""


def test_edits_of_many_processes_do_not_lose_one_another(file: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(file), name]) for name in ("x", "y", "z")]
    seen = {inventory.load(file).digest}  # a reader never meets half a file
    while any(worker.poll() is None for worker in workers):
        seen.add(inventory.load(file).digest)
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted(names(file)) == ["a", "b", *(f"{name}{number}" for name in "xyz" for number in (0, 2, 4, 6))]
    assert len(seen) > 1
    assert left_over(file) == []


def test_a_killed_edit_leaves_the_old_file_or_the_new_one_and_no_lock(file: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom sshgrid.inventory import edit as inventory_edit\n"
        "inventory_edit.os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "inventory_edit.edit_file(Path(sys.argv[1]), lambda text: inventory_edit.add_node(text, 'c', {}))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == -9
    assert file.read_text() == TEXT
    edit_file(file, lambda text: add_node(text, "c", {}))
    assert names(file) == ["a", "b", "c"]
