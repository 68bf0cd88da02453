"""The door in this process, over a scripted grid: what takes too long, what dies, and who is too many."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from sshgrid.errors import StoreError
from sshgrid.gateway import server as doors
from sshgrid.gateway.server import Gateway
from sshgrid.model import Caps, Exited, OnDisconnect, Role
from sshgrid.protocol.codec import encode
from sshgrid.protocol.messages import Hello, Watch
from sshgrid.protocol.user_messages import AddUser, DisableUser, SetCaps
from sshgrid.testing import ScriptedGrid, after, until
from sshgrid.testing.engine import Stage
from tests.service.conftest import Grids
from tests.service.server.test_session import FakeProcess

pytestmark = pytest.mark.usefixtures("quiet_log")


class Opened:
    """A door that is open on a port of its own, and a key of ann's."""

    def __init__(self, grid: ScriptedGrid, state: Path) -> None:
        self.grid, self.state = grid, state
        self.gateway = self.another()
        self.key = asyncssh.generate_private_key("ssh-ed25519")

    def another(self) -> Gateway:
        process = FakeProcess(self.grid, self.state / "s")
        return Gateway(self.grid.master.accounts, process.serve_client, self.state)

    async def open(self) -> None:
        await self.gateway.open("127.0.0.1", 0)
        public = self.key.export_public_key().decode().strip()
        await self.grid.master.accounts.answer(AddUser("ann", Role.USER, (public,)))

    @property
    def port(self) -> int:
        return int(self.gateway.address.rpartition(":")[2])

    async def connect(self, name: str = "ann") -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            "127.0.0.1",
            self.port,
            username=name,
            client_keys=[self.key],
            known_hosts=None,
            config=None,
            agent_path=None,
        )


@pytest.fixture
async def opened(grids: Grids, tmp_path: Path) -> AsyncIterator[Opened]:
    grid = await grids(nodes=("n1",))
    tmp_path.joinpath("door").mkdir(mode=0o700)
    opened = Opened(grid, tmp_path / "door")
    await opened.open()
    yield opened
    await opened.gateway.close()


async def test_a_connection_that_breaks_ends_what_was_to_end_with_it(opened: Opened) -> None:
    async def until_killed(stage: Stage) -> Exited:
        await stage.signal()
        return Exited(143)

    opened.grid.engine.plays(until_killed)
    connection = await opened.connect()
    process = await connection.create_process("sshgrid-wire", encoding=None)
    job = await opened.grid.submit()
    await opened.grid.reaches(job, "RUNNING")
    process.stdin.write(encode(Hello("test")) + encode(Watch(job, on_disconnect=OnDisconnect.CANCEL)))
    while b"progress" not in await process.stdout.readline():
        pass
    connection.abort()
    assert (await opened.grid.wait(job)).reason == "cancelled (TERM by lost client)"


async def test_a_command_goes_through_and_back(opened: Opened) -> None:
    opened.grid.engine.plays(after(b"hello\n", Exited(7)))
    async with await opened.connect() as connection:
        done = await connection.run("run --lang sh -", input="echo hello\n")
        assert (done.exit_status, done.stdout) == (7, "hello\n")
        assert "ann" in str((await connection.run("ps -a --no-header")).stdout)


async def test_what_has_died_is_made_again_and_what_was_with_it_ends(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    async with await opened.connect() as connection:
        going = await connection.create_process("ps --watch")
        await going.stdout.readline()
        process = opened.gateway.children._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(15):
            assert (await going.wait()).exit_status != 0
        await until(lambda: opened.gateway.children._process not in (None, process))
        assert (await connection.run("version")).exit_status == 0
    assert "another one is started" in caplog.text
    caplog.clear()


async def test_who_does_not_log_in_or_does_nothing_has_to_go(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "LOGIN_SECONDS", 0.5)
    monkeypatch.setattr(doors, "IDLE_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
    writer.write(b"SSH-2.0-slow\r\n")
    async with asyncio.timeout(10):
        while await reader.read(4096):
            pass
    writer.close()
    connection = await opened.connect()
    async with asyncio.timeout(10):
        await connection.wait_closed()
    assert opened.gateway._inside == {}


async def test_A29_more_connections_than_one_user_may_have_are_turned_away(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "MOST_CONNECTIONS_OF_ONE", 2)
    first, second = await opened.connect(), await opened.connect()
    with pytest.raises((asyncssh.Error, OSError)):
        await (await opened.connect()).run("version", check=True)
    first.close()
    await first.wait_closed()
    await until(lambda: len(opened.gateway._inside) == 1)
    async with await opened.connect() as third:
        assert (await third.run("version")).exit_status == 0
    second.close()
    await second.wait_closed()


async def test_more_commands_at_once_than_one_connection_may_have_are_refused(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "MOST_CHANNELS", 2)
    async with await opened.connect() as connection:
        going = [await connection.create_process("ps --watch") for _ in range(2)]
        for each in going:
            await each.stdout.readline()
        refused = await connection.run("version")
        assert (refused.exit_status, "too many" in str(refused.stderr)) == (1, True)
        for each in going:
            each.terminate()
            async with asyncio.timeout(15):
                await each.wait()
        assert (await connection.run("version")).exit_status == 0


async def test_who_is_locked_out_is_out_at_once_and_may_come_back(opened: Opened) -> None:
    people = opened.grid.master.accounts
    connection = await opened.connect()
    await people.answer(DisableUser("ann"))
    async with asyncio.timeout(10):
        await connection.wait_closed()
    with pytest.raises(asyncssh.PermissionDenied):
        await opened.connect()
    await people.answer(DisableUser("ann", disabled=False))
    async with await opened.connect() as again:
        assert (await again.run("version")).exit_status == 0


async def test_A33_a_cap_said_later_holds_for_the_next_upload(opened: Opened) -> None:
    async with await opened.connect() as connection, connection.start_sftp_client() as sftp:
        async with sftp.open("a", "wb") as file:
            await file.write(bytes(1000))
        await opened.grid.master.accounts.answer(SetCaps("ann", Caps(upload_bytes=1500)))
        with pytest.raises(asyncssh.SFTPFailure, match="more than"):
            async with sftp.open("b", "wb") as file:
                await file.write(bytes(1000))
        assert sorted(await sftp.listdir(".")) == ["a", "b"]


async def test_a_host_key_that_others_can_read_is_no_host_key(opened: Opened, tmp_path: Path) -> None:
    key = opened.state / "door_host_key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    with pytest.raises(StoreError, match="can be read by others"):
        await opened.another().open("127.0.0.1", 0)
    key.chmod(0o600)
    key.write_text("nonsense")
    with pytest.raises(StoreError, match="not a host key"):
        await opened.another().open("127.0.0.1", 0)


async def test_a_port_that_is_taken_is_said(opened: Opened) -> None:
    other = opened.another()
    with pytest.raises(StoreError, match=f"port {opened.port}"):
        await other.open("127.0.0.1", opened.port)
