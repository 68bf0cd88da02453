"""Where the door is: said once, kept for the next master; and the way to one elsewhere, in words for `ssh`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sshgrid.client import remote
from sshgrid.errors import StoreError, UsageError
from sshgrid.gateway import address
from sshgrid.gateway.address import GatewayAddress


def test_a_gateway_is_remembered_until_another_word(tmp_path: Path) -> None:
    state = str(tmp_path)
    assert address.chosen(None, None, state) is None
    assert address.chosen("0.0.0.0", None, state) == GatewayAddress("0.0.0.0", 4200)
    assert address.chosen(None, None, state) == address.remembered(state) == GatewayAddress("0.0.0.0", 4200)
    assert stat.S_IMODE((tmp_path / address.NAME).stat().st_mode) == 0o600
    assert address.chosen(None, 4300, state) == GatewayAddress("127.0.0.1", 4300)
    assert address.chosen("none", None, state) is None
    assert address.remembered(state) is None
    assert address.chosen("none", None, state) is None


def test_a_file_of_nobody_s_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / address.NAME
    path.write_text("{}")
    with pytest.raises(StoreError, match="listen"):
        address.remembered(str(tmp_path))
    path.unlink()
    (tmp_path / "elsewhere").write_text('{"listen": "0.0.0.0"}')
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="not what it should be"):
        address.remembered(str(tmp_path))


def test_the_words_for_ssh_end_with_the_host_and_our_protocol() -> None:
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
def test_what_is_no_address_never_reaches_ssh(url: str) -> None:
    with pytest.raises(UsageError, match="not the address of a master"):
        remote.command(url, prompts=True)
