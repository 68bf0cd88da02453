"""Which inventory is used, and where its state is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sshgrid.errors import InventoryError
from sshgrid.paths import MAX_SOCKET_BYTES, Places, places


def find(folder: Path, flag: str | None = None, **environ: str) -> Places:
    return places(flag, environ, str(folder / "here"), str(folder / "me"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("here", "me/.config/sshgrid", "elsewhere"):
        (tmp_path / name).mkdir(parents=True, mode=0o755)
        (tmp_path / name / "inventory.yaml").write_text(name)
    return tmp_path


def test_the_flag_wins_over_the_environment_the_current_folder_and_the_config(folder: Path) -> None:
    named = {"SSHGRID_INVENTORY": str(folder / "elsewhere/inventory.yaml")}
    assert find(folder, "../me/.config/sshgrid/inventory.yaml", **named).inventory_source == "-i"
    assert find(folder, **named).inventory_source == "environment"
    assert find(folder).inventory_source == "current folder"
    (folder / "here/inventory.yaml").unlink()
    assert find(folder).inventory_source == "config"
    (folder / "me/.config/sshgrid/inventory.yaml").unlink()
    with pytest.raises(InventoryError) as caught:
        find(folder)
    assert caught.value.hint == "sshgrid node add NAME [USER@]HOST"


@pytest.mark.parametrize("name", ["here", "here/inventory.yaml"])
def test_an_inventory_in_the_current_folder_that_others_can_write_is_ignored(folder: Path, name: str) -> None:
    (folder / name).chmod(0o777)
    found = find(folder)
    assert found.inventory_source == "config"
    assert "others can write" in found.notes[0]
    assert find(folder, "inventory.yaml").inventory_source == "-i"


def test_one_inventory_has_one_state_folder_under_all_of_its_paths(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "here")
    assert find(folder).state_dir == find(folder, "../link/inventory.yaml").state_dir
    assert find(folder).state_dir != find(folder, "../elsewhere/inventory.yaml").state_dir


def test_SSHGRID_HOME_contains_config_state_and_socket(folder: Path) -> None:
    (folder / "here/inventory.yaml").unlink()
    home = folder / "elsewhere"
    found = find(folder, SSHGRID_HOME=str(home))
    assert found.inventory == str((home / "inventory.yaml").resolve())
    assert {os.path.commonpath([str(home), each]) for each in (found.state_dir, found.log, found.lock)} == {str(home)}
    assert found.config_dir == str(home)


def test_a_socket_path_always_fits(folder: Path) -> None:
    found = find(folder, SSHGRID_STATE_DIR=str(folder / ("x" * 120)), XDG_RUNTIME_DIR="/run/user/1")
    assert len(os.fsencode(found.socket)) <= MAX_SOCKET_BYTES
    assert found.socket.startswith(f"/run/user/1/sshgrid-{os.getuid()}/")
