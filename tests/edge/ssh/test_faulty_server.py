"""Servers that lie, drop connections, stay silent or speak another protocol: each gives its error in time."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import asyncssh
import msgspec
import pytest

from sshgrid.engines import starter
from sshgrid.errors import Dropped, HostError, HostKeyChanged, HostKeyUnknown, LoginRefused, NodeUnfit, Unreachable
from sshgrid.model import Exited, Node
from sshgrid.ssh import channels, connect
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.link import Link
from tests.edge.engine_hosts import Host, Kept
from tests.lab.faulty_server import FaultyServer, Mode

NewServer = Callable[[Mode], FaultyServer]
PLAIN = Dialing(ssh_config="")


def node_of(faulty_server: FaultyServer, tmp_path: Path, **changes: object) -> Node:
    node = msgspec.convert({"name": "n1", "workdir": str(tmp_path / "w"), **faulty_server.node()}, Node)
    return msgspec.structs.replace(node, **changes)


class Refusal(NamedTuple):
    error: HostError
    seconds: float


async def refused(node: Node, how: Dialing = PLAIN) -> Refusal:
    """Return the error of opening a link, and the seconds until it is raised."""
    began = time.monotonic()
    with pytest.raises(HostError) as caught:
        await asyncio.wait_for(Link.open(node, how, (), lambda _: None), 40)
    assert caught.value.node == "n1"
    assert str(caught.value).startswith("n1: ")
    assert "\n" not in str(caught.value)
    assert len(caught.value.reason) < 300
    return Refusal(caught.value, time.monotonic() - began)


@asynccontextmanager
async def opened(node: Node) -> AsyncIterator[Link]:
    link = await Link.open(node, PLAIN, (), lambda _: None)
    try:
        yield link
    finally:
        await link.close()


async def test_cipher_of_ssh_config_overrides_the_default(faulty_server: NewServer, tmp_path: Path) -> None:
    node, ssh_config = node_of(faulty_server(Mode.CORRECT), tmp_path), tmp_path / "ssh_config"
    for words, expected in (("", "aes128-gcm@openssh.com"), ("Ciphers aes256-ctr\n", "aes256-ctr")):
        ssh_config.write_text(f"Host *\n{words}")
        connection = await connect.dial(node, Dialing(ssh_config=str(ssh_config)))
        assert connection.get_extra_info("send_cipher") == expected
        await connect.end(connection)


# --- no SSH, or no answer ---------------------------------------------------------------------------------------------


async def test_F32_server_without_a_banner_fails_after_the_connect_timeout(
    faulty_server: NewServer, tmp_path: Path
) -> None:
    refusal = await refused(node_of(faulty_server(Mode.NO_BANNER), tmp_path, connect_timeout_seconds=1.0))
    assert type(refusal.error) is Unreachable
    assert refusal.error.reason == "no answer within 1 s"
    assert refusal.seconds < 3


@pytest.mark.parametrize("mode", [Mode.ENDLESS_BANNER, Mode.HTTP])
async def test_F33_server_of_another_protocol_is_unreachable_at_once(
    faulty_server: NewServer, tmp_path: Path, mode: Mode
) -> None:
    refusal = await refused(node_of(faulty_server(mode), tmp_path))
    assert type(refusal.error) is Unreachable
    assert refusal.seconds < 3


async def test_closed_port_is_a_refused_connection(faulty_server: NewServer, tmp_path: Path) -> None:
    server = faulty_server(Mode.CORRECT)
    refusal = await refused(node_of(server, tmp_path, port=1))
    assert type(refusal.error) is Unreachable
    assert refusal.error.reason == "connection refused"
    assert refusal.seconds < 2


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "exa mple", "-oProxyCommand=true", ""])
async def test_name_without_an_address_is_unreachable(faulty_server: NewServer, tmp_path: Path, host: str) -> None:
    refusal = await refused(node_of(faulty_server(Mode.CORRECT), tmp_path, host=host, port=1))
    assert type(refusal.error) is Unreachable


# --- logins -----------------------------------------------------------------------------------------------------------


async def test_F31_refused_login_names_the_user_and_has_a_hint(faulty_server: NewServer, tmp_path: Path) -> None:
    server = faulty_server(Mode.REFUSES_LOGIN)
    refusal = await refused(node_of(server, tmp_path))
    assert type(refusal.error) is LoginRefused
    assert "grid" in refusal.error.reason
    assert "ssh-copy-id" in refusal.error.hint
    assert refusal.seconds < 5
    assert server.connections == 1, "the login is not repeated"


async def test_missing_identity_file_is_reported_before_a_connection_is_made(
    faulty_server: NewServer, tmp_path: Path
) -> None:
    server = faulty_server(Mode.CORRECT)
    refusal = await refused(node_of(server, tmp_path, identity_file=str(tmp_path / "none")))
    assert type(refusal.error) is LoginRefused
    assert str(tmp_path / "none") in refusal.error.reason
    assert server.connections == 0


async def test_key_with_a_passphrase_is_a_login_error(faulty_server: NewServer, tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    locked = tmp_path / "locked"
    locked.write_bytes(key.export_private_key(passphrase="secret"))
    refusal = await refused(node_of(faulty_server(Mode.CORRECT), tmp_path, identity_file=str(locked)))
    assert type(refusal.error) is LoginRefused
    assert "passphrase" in refusal.error.reason
    assert "ssh-add" in refusal.error.hint


async def test_identity_file_without_a_key_is_a_login_error(faulty_server: NewServer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    refusal = await refused(node_of(faulty_server(Mode.CORRECT), tmp_path, identity_file=str(tmp_path / "text")))
    assert type(refusal.error) is LoginRefused


# --- host keys --------------------------------------------------------------------------------------------------------


async def test_A20_unknown_host_key_shows_its_fingerprint_and_how_to_accept_it(
    faulty_server: NewServer, tmp_path: Path
) -> None:
    server = faulty_server(Mode.CORRECT)
    server.known_hosts.write_text("")
    refusal = await refused(node_of(server, tmp_path))
    assert type(refusal.error) is HostKeyUnknown
    assert refusal.error.reason == f"unknown host key {fingerprint(server)}"
    assert refusal.error.hint == "sshgrid node check n1 --accept-new"
    assert server.sessions == 0
    assert isinstance(refusal.error, HostKeyUnknown)
    server.known_hosts.write_text(refusal.error.line + "\n")
    async with opened(node_of(server, tmp_path)) as link:
        assert link.facts.system == "Linux"


def fingerprint(server: FaultyServer) -> str:
    key = asyncssh.import_public_key(f"{server._host_key.get_name()} {server._host_key.get_base64()}")
    return key.get_fingerprint()


async def test_A21_changed_host_key_names_file_and_line(faulty_server: NewServer, tmp_path: Path) -> None:
    server = faulty_server(Mode.OTHER_HOST_KEY)
    server.known_hosts.write_text("# comment\n\n" + server.known_hosts.read_text())
    refusal = await refused(node_of(server, tmp_path))
    assert type(refusal.error) is HostKeyChanged
    assert f"{server.known_hosts}:3" in refusal.error.reason
    assert fingerprint(server) in refusal.error.reason
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}' -f {server.known_hosts}, then" in refusal.error.hint
    assert server.sessions == 0


async def test_A21_revoked_key_is_refused_as_changed(faulty_server: NewServer, tmp_path: Path) -> None:
    server = faulty_server(Mode.CORRECT)
    server.known_hosts.write_text("@revoked " + server.known_hosts.read_text())
    refusal = await refused(node_of(server, tmp_path))
    assert type(refusal.error) is HostKeyChanged
    assert f"{server.known_hosts}:1" in refusal.error.reason


async def test_invalid_lines_of_known_hosts_are_ignored(faulty_server: NewServer, tmp_path: Path) -> None:
    """OpenSSH ignores them as well: one invalid line must not make every node unreachable."""
    server = faulty_server(Mode.CORRECT)
    bad = "half-a-line\n@what is this line\nhost ssh-ed25519 AAAA!!\n|1|bad|hash ssh-rsa AAAA\n\xff\n"
    server.known_hosts.write_text(bad + server.known_hosts.read_text() + "last-half", encoding="latin-1")
    async with opened(node_of(server, tmp_path)) as link:
        assert link.facts.system == "Linux"
    server.known_hosts.write_text(bad, encoding="latin-1")
    assert type((await refused(node_of(server, tmp_path))).error) is HostKeyUnknown


async def test_A22_host_key_check_cannot_be_disabled(faulty_server: NewServer, tmp_path: Path) -> None:
    server = faulty_server(Mode.OTHER_HOST_KEY)
    config = tmp_path / "config"
    config.write_text("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n")
    refusal = await refused(node_of(server, tmp_path), Dialing(ssh_config=str(config)))
    assert type(refusal.error) is HostKeyChanged


# --- after the login --------------------------------------------------------------------------------------------------


async def test_connection_lost_at_first_contact_is_reported_as_lost(faulty_server: NewServer, tmp_path: Path) -> None:
    refusal = await refused(node_of(faulty_server(Mode.DROPS), tmp_path))
    assert isinstance(refusal.error, Unreachable | Dropped)
    assert "login shell" not in refusal.error.reason, "the error blames the login shell"
    assert refusal.seconds < 5


async def test_A16_exit_status_zero_without_the_nonce_is_a_failure(faulty_server: NewServer, tmp_path: Path) -> None:
    refusal = await refused(node_of(faulty_server(Mode.REPORTS_ZERO), tmp_path))
    assert type(refusal.error) is NodeUnfit
    assert "login shell does not run commands" in refusal.error.reason
    assert "ordinary shell" in refusal.error.hint
    assert refusal.seconds < 5


async def test_F32_server_that_is_silent_after_the_login_fails_in_time(
    faulty_server: NewServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers nothing, not even keepalives: the longest of three timeouts counts."""
    monkeypatch.setattr(connect, "KEEPALIVE_SECONDS", 0.5)
    monkeypatch.setattr(channels, "GREETING_SECONDS", 2)
    refusal = await refused(node_of(faulty_server(Mode.SILENT_AFTER_LOGIN), tmp_path))
    assert refusal.seconds < 6


# --- SFTP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.CORRECT, Mode.SFTP_POLLUTED])
async def test_A17_without_working_sftp_files_go_through_a_channel(
    faulty_server: NewServer, tmp_path: Path, mode: Mode
) -> None:
    host = Host(node_of(faulty_server(mode), tmp_path), tmp_path, PLAIN)
    sink = Kept()
    source = b"cat; exit 5"
    finish = await host.run(host.order(source, stdin=bytes(range(256)) * 2000), sink)
    assert finish.outcome == Exited(5)
    assert sink["stdout"] == bytes(range(256)) * 2000
    await host.end()


async def test_F25_sftp_that_confirms_but_stores_nothing_is_detected(faulty_server: NewServer, tmp_path: Path) -> None:
    content = b"x" * 1000
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "file").write_bytes(content)
    async with opened(node_of(faulty_server(Mode.SFTP_DISCARDS), tmp_path)) as link:
        with pytest.raises(NodeUnfit, match="upload failed"):
            await link.transfer.upload(sha256, tmp_path / "file")
        assert await link.transfer.missing([sha256]) == [sha256]
        assert not link.lost.done(), "the connection is lost"


async def test_upload_that_does_not_stay_is_not_repeated_for_ever(faulty_server: NewServer, tmp_path: Path) -> None:
    host = Host(node_of(faulty_server(Mode.SFTP_DISCARDS), tmp_path), tmp_path, PLAIN)
    with pytest.raises(NodeUnfit):
        await host.run(host.order(b"echo ran"))
    assert starter.UPLOAD_TRIES <= 5
    await host.end()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "end"),
    [
        ("Host other\n  HostName 10.0.0.1\n", "has no HostName for it"),
        ("Host lab-beta\n  HostName nowhere.invalid\n", "Name or service not known"),
    ],
)
def test_alias_without_an_address_is_reported_with_the_file_that_lacks_it(
    tmp_path: Path, config: str, end: str
) -> None:
    (tmp_path / "config").write_text(config)
    dialing = Dialing(ssh_config=str(tmp_path / "config"))
    with pytest.raises(Unreachable) as refused, connect.blame(Node("n1", ssh_config="lab-beta"), None, dialing):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert refused.value.reason.startswith("no address for lab-beta: Name or service not known")
    assert refused.value.reason.endswith(end)
