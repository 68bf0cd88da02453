"""The address of the SSH gateway, remembered for the next master; and the `ssh` command for a remote master."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sshgrid.client import remote
from sshgrid.errors import StoreError, UsageError
from sshgrid.gateway import address
from sshgrid.gateway.address import GatewayAddress


def test_an_address_is_remembered_until_another_one_is_given(tmp_path: Path) -> None:
    state = str(tmp_path)
    assert address.choose(None, None, state) is None
    assert address.choose("0.0.0.0", None, state) == GatewayAddress("0.0.0.0", 4200)
    assert address.choose(None, None, state) == address.load(state) == GatewayAddress("0.0.0.0", 4200)
    assert stat.S_IMODE((tmp_path / address.FILE).stat().st_mode) == 0o600
    assert address.choose(None, 4300, state) == GatewayAddress("127.0.0.1", 4300)
    assert address.choose("none", None, state) is None
    assert address.load(state) is None
    assert address.choose("none", None, state) is None


def test_an_address_under_the_old_file_name_is_read_and_renamed(tmp_path: Path) -> None:
    old = tmp_path / "door.json"
    old.write_text('{"listen": "0.0.0.0", "port": 4300}')
    old.chmod(0o600)
    assert address.load(str(tmp_path)) == GatewayAddress("0.0.0.0", 4300)
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.json"]
    assert address.choose(None, None, str(tmp_path)) == GatewayAddress("0.0.0.0", 4300)


def test_listen_none_forgets_an_address_under_the_old_file_name(tmp_path: Path) -> None:
    (tmp_path / "door.json").write_text('{"listen": "0.0.0.0"}')
    assert address.choose("none", None, str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_an_address_or_a_link_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / address.FILE
    path.write_text("{}")
    with pytest.raises(StoreError, match="listen"):
        address.load(str(tmp_path))
    path.unlink()
    (tmp_path / "elsewhere").write_text('{"listen": "0.0.0.0"}')
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="has the wrong type"):
        address.load(str(tmp_path))


def test_the_ssh_command_ends_with_the_host_and_the_protocol_command() -> None:
    words = remote.command("ssh://ana@grid.example:4300", prompts=False)
    assert words[:4] == ["ssh", "-T", "-p", "4300"]
    assert words[-5:] == ["-l", "ana", "--", "grid.example", "sshgrid-wire"]
    assert "BatchMode=yes" in words
    asking = remote.command("ssh://[::1]/", prompts=True)
    assert asking[-3:] == ["--", "::1", "sshgrid-wire"]
    assert asking[3] == "4200"
    assert "BatchMode=yes" not in asking


@pytest.mark.parametrize(
    "url",
    [
        "",
        "grid",
        "http://grid",
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://a@-x",
        "ssh://-l@x",
        "ssh://a b",
        "ssh://x:y",
        "ssh://x:99999",
        "ssh://x/path",
        "ssh://x;id",
        "ssh://$(id)",
        "ssh://x\n",
        "ssh://a:secret@x",
        "ssh://x?y",
    ],
)
def test_text_that_is_not_an_address_never_reaches_ssh(url: str) -> None:
    with pytest.raises(UsageError, match="not the address of a master"):
        remote.command(url, prompts=True)
