"""The inventory as a real file: errors of load, and edits that are atomic, durable and do not overwrite each other."""

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


def test_a_missing_file_is_an_inventory_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="no such file") as caught:
        inventory.load(tmp_path / "none.yaml")
    assert caught.value.hint.startswith("sshgrid node add")


def test_a_folder_or_a_pipe_is_an_error_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InventoryError, match="not a regular file"):
            inventory.load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_an_inventory_error(file: Path) -> None:
    file.chmod(0)
    with pytest.raises(InventoryError, match="Permission denied"):
        inventory.load(file)


def test_A1_a_huge_file_is_an_error_without_being_read_completely(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as huge:
        huge.truncate(1 << 40)
    with pytest.raises(InventoryError, match="larger than 1024 KiB"):
        inventory.load(path)


def test_errors_have_the_path_of_the_file_as_given(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("nodes:\n  a: {hosts: x}\n")
    monkeypatch.chdir(file.parent)
    with pytest.raises(InventoryError, match=r"^inventory\.yaml:2:7: "):
        inventory.load(Path("inventory.yaml"))


# --- edit -------------------------------------------------------------------------------------------------------------


def test_an_edit_keeps_mode_and_comments_and_leaves_no_other_file(file: Path) -> None:
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
def test_an_edit_that_makes_the_file_invalid_is_refused(file: Path, result: str) -> None:
    with pytest.raises(InventoryError):
        edit_file(file, lambda _: result)
    assert file.read_text() == TEXT
    assert left_over(file) == []


def test_an_invalid_file_is_not_edited_and_the_errors_have_its_path(file: Path) -> None:
    file.write_text("nodes:\n  a: {hosts: x}\n")
    with pytest.raises(InventoryError) as caught:
        edit_file(file, lambda text: add_node(text, "c", {}))
    assert caught.value.message.startswith(f"{file}:2:7: ")


def test_a_change_that_raises_keeps_the_file_and_releases_the_lock(file: Path) -> None:
    def change(text: str) -> str:
        raise UsageError("not today")

    for _ in range(2):
        with pytest.raises(UsageError, match="not today"):
            edit_file(file, change)
    assert file.read_text() == TEXT


def test_a_missing_file_is_created_only_with_create(tmp_path: Path) -> None:
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


def test_a_save_by_an_editor_during_an_edit_is_kept(file: Path) -> None:
    """An editor does not use the lock: the change is applied again to the text that it wrote."""
    saved = iter(["# saved by hand\n" + TEXT])

    def change(text: str) -> str:
        if by_hand := next(saved, ""):
            file.write_text(by_hand)
        return add_node(text, "c", {})

    edit_file(file, change)
    assert file.read_text() == "# saved by hand\n" + TEXT + "  c: {}\n"


def test_an_edit_of_a_file_that_keeps_changing_is_an_error(file: Path) -> None:
    count = iter(range(100))

    def change(text: str) -> str:
        file.write_text(TEXT + f"# {next(count)}\n")
        return add_node(text, "c", {})

    with pytest.raises(UsageError, match="another program keeps changing the file"):
        edit_file(file, change)
    assert left_over(file) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everything")
def test_a_read_only_file_is_not_replaced(file: Path) -> None:
    file.chmod(0o444)
    with pytest.raises(UsageError, match="read-only"):
        edit_file(file, lambda text: add_node(text, "c", {}))


def test_edits_by_many_threads_are_all_kept(file: Path) -> None:
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


def test_edits_by_many_processes_are_all_kept(file: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(file), name]) for name in ("x", "y", "z")]
    seen = {inventory.load(file).digest}  # a reader never sees a part of a file
    while any(worker.poll() is None for worker in workers):
        seen.add(inventory.load(file).digest)
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted(names(file)) == ["a", "b", *(f"{name}{number}" for name in "xyz" for number in (0, 2, 4, 6))]
    assert len(seen) > 1
    assert left_over(file) == []


def test_a_killed_edit_leaves_the_old_or_the_new_file_and_no_lock(file: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom sshgrid.inventory import edit as inventory_edit\n"
        "inventory_edit.os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "inventory_edit.edit_file(Path(sys.argv[1]), lambda text: inventory_edit.add_node(text, 'c', {}))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == -9
    assert file.read_text() == TEXT
    edit_file(file, lambda text: add_node(text, "c", {}))
    assert names(file) == ["a", "b", "c"]
