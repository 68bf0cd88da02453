"""The arguments of the system's ssh: the login of the connection, and no other settings of a configuration."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from sshgrid.model import Node
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.openssh import OpensshUpload, arguments

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ"


def options(words: list[str]) -> dict[str, str]:
    return dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-o")


def test_only_the_host_key_of_the_connection_is_accepted_without_a_prompt() -> None:
    found = options(arguments(Node("n", host="h"), Dialing(ssh_config=""), "/tmp/50% known", KEY))
    assert found["StrictHostKeyChecking"] == "yes"
    assert found["UserKnownHostsFile"] == '"/tmp/50%% known"'
    assert found["GlobalKnownHostsFile"] == "/dev/null"
    assert found["VerifyHostKeyDNS"] == "no", "DNS can vouch for another key"
    assert found["HostKeyAlgorithms"] == "ssh-ed25519"
    assert found["BatchMode"] == "yes"


def test_login_is_that_of_the_inventory(tmp_path: Path) -> None:
    node = Node("n", host="h", port=2200, user="grid", identity_file=str(tmp_path / "key"))
    words = arguments(node, Dialing(ssh_config="", agent="/agent"), "/k", KEY)
    found = options(words)
    assert (found["Port"], found["User"], found["IdentitiesOnly"]) == ("2200", "grid", "yes")
    assert found["IdentityFile"] == f'"{tmp_path}/key"'
    assert found["IdentityAgent"] == "none", "the connection does not use the agent either"
    assert words[-2:] == ["--", "h"]
    assert words[words.index("-F") + 1] == "none"


def test_alias_and_its_ciphers_are_left_to_ssh_config(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host lab\n  Ciphers aes256-ctr\n")
    words = arguments(Node("n", ssh_config="lab"), Dialing(ssh_config=str(config)), "/k", KEY)
    assert words[words.index("-F") + 1] == str(config)
    assert words[-1] == "lab"
    assert "Ciphers" not in options(words)


@pytest.mark.parametrize(
    ("kind", "algorithms"), [("ssh-rsa", "rsa-sha2-512,rsa-sha2-256"), ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256")]
)
def test_key_type_is_requested_by_its_signature_algorithms(kind: str, algorithms: str) -> None:
    found = options(arguments(Node("n", host="h"), Dialing(ssh_config=""), "/k", f"{kind} AAAA"))
    assert found["HostKeyAlgorithms"] == algorithms


@pytest.mark.parametrize("trouble", ["no room for the key", "a program that does not start"])
async def test_unusable_ssh_returns_none_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_bytes(b"\x7fELF of another machine")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent))
    temporary = tmp_path / "tmp"
    if trouble == "a program that does not start":
        temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = set(Path("/proc/self/fd").iterdir())
    assert await OpensshUpload.open(Node("n", host="h"), Dialing(ssh_config=""), KEY, "true") is None
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert not temporary.exists() or list(temporary.iterdir()) == []
