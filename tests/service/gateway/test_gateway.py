"""The SSH gateway in this process, over a scripted grid: timeouts, dead processes, and limits of connections."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import asyncssh
import pytest

from sshgrid.errors import StoreError
from sshgrid.gateway.limits import DEFAULT_LIMITS, GatewayLimits
from sshgrid.gateway.listener import load_host_key
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


class OpenGateway:
    """A gateway on a free port over a scripted grid, and a key of the user ann."""

    def __init__(self, grid: ScriptedGrid, state: Path, limits: GatewayLimits) -> None:
        self.grid, self.state, self.limits = grid, state, limits
        self.gateway = self.another()
        self.key = asyncssh.generate_private_key("ssh-ed25519")

    def another(self) -> Gateway:
        """A further gateway for the same state folder, which is not open."""
        process = FakeProcess(self.grid, self.state / "s")
        return Gateway(self.grid.master.accounts, process.serve_client, self.state, self.limits)

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


MakeGateway: TypeAlias = Callable[[GatewayLimits], Awaitable[OpenGateway]]


@pytest.fixture
async def open_gateway(grids: Grids, tmp_path: Path) -> AsyncIterator[MakeGateway]:
    opened: list[OpenGateway] = []

    async def open_one(limits: GatewayLimits) -> OpenGateway:
        state = tmp_path / "state"
        state.mkdir(mode=0o700)
        opened.append(OpenGateway(await grids(nodes=("n1",)), state, limits))
        await opened[-1].open()
        return opened[-1]

    yield open_one
    for each in opened:
        await each.gateway.close()


@pytest.fixture
async def opened(open_gateway: MakeGateway) -> OpenGateway:
    return await open_gateway(DEFAULT_LIMITS)


async def test_a_broken_connection_cancels_a_job_that_asked_for_it(opened: OpenGateway) -> None:
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


async def test_a_command_gets_its_input_and_returns_output_and_exit_code(opened: OpenGateway) -> None:
    opened.grid.engine.plays(after(b"hello\n", Exited(7)))
    async with await opened.connect() as connection:
        done = await connection.run("run --lang sh -", input="echo hello\n")
        assert (done.exit_status, done.stdout) == (7, "hello\n")
        assert "ann" in str((await connection.run("ps -a --no-header")).stdout)


async def test_a_dead_forkserver_is_started_again_and_its_commands_end(
    opened: OpenGateway, caplog: pytest.LogCaptureFixture
) -> None:
    workers = opened.gateway.workers
    async with await opened.connect() as connection:
        running = await connection.create_process("ps --watch")
        await running.stdout.readline()
        before = workers.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(15):
            assert (await running.wait()).exit_status != 0
        await until(lambda: workers.pid not in (None, before), lambda: workers.pid)
        assert (await connection.run("version")).exit_status == 0
    assert "it is started again" in caplog.text
    caplog.clear()


async def test_a_connection_that_does_not_log_in_is_closed(open_gateway: MakeGateway) -> None:
    opened = await open_gateway(GatewayLimits(login_seconds=0.5))
    reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
    writer.write(b"SSH-2.0-slow\r\n")
    async with asyncio.timeout(10):
        while await reader.read(4096):
            pass
    writer.close()


async def test_an_idle_connection_is_closed(open_gateway: MakeGateway) -> None:
    opened = await open_gateway(GatewayLimits(idle_seconds=0.3))
    connection = await opened.connect()
    async with asyncio.timeout(10):
        await connection.wait_closed()
    assert opened.gateway.connections == 0


async def test_A29_more_connections_than_the_limit_of_one_user_are_refused(open_gateway: MakeGateway) -> None:
    opened = await open_gateway(GatewayLimits(connections_per_user=2))
    first, second = await opened.connect(), await opened.connect()
    with pytest.raises((asyncssh.Error, OSError)):
        await (await opened.connect()).run("version", check=True)
    first.close()
    await first.wait_closed()
    await until(lambda: opened.gateway.connections == 1, lambda: opened.gateway.connections)
    async with await opened.connect() as third:
        assert (await third.run("version")).exit_status == 0
    second.close()
    await second.wait_closed()


async def test_more_commands_than_the_limit_of_one_connection_are_refused(open_gateway: MakeGateway) -> None:
    opened = await open_gateway(GatewayLimits(channels_per_connection=2))
    async with await opened.connect() as connection:
        running = [await connection.create_process("ps --watch") for _ in range(2)]
        for each in running:
            await each.stdout.readline()
        refused = await connection.run("version")
        assert (refused.exit_status, "too many" in str(refused.stderr)) == (1, True)
        for each in running:
            each.terminate()
            async with asyncio.timeout(15):
                await each.wait()
        assert (await connection.run("version")).exit_status == 0


async def test_a_disabled_user_is_disconnected_at_once_and_can_be_enabled_again(opened: OpenGateway) -> None:
    accounts = opened.grid.master.accounts
    connection = await opened.connect()
    await accounts.answer(DisableUser("ann"))
    async with asyncio.timeout(10):
        await connection.wait_closed()
    with pytest.raises(asyncssh.PermissionDenied):
        await opened.connect()
    await accounts.answer(DisableUser("ann", disabled=False))
    async with await opened.connect() as again:
        assert (await again.run("version")).exit_status == 0


async def test_A33_a_changed_limit_applies_to_the_next_upload(opened: OpenGateway) -> None:
    async with await opened.connect() as connection, connection.start_sftp_client() as sftp:
        async with sftp.open("a", "wb") as file:
            await file.write(bytes(1000))
        await opened.grid.master.accounts.answer(SetCaps("ann", Caps(upload_bytes=1500)))
        with pytest.raises(asyncssh.SFTPFailure, match="more than"):
            async with sftp.open("b", "wb") as file:
                await file.write(bytes(1000))
        assert sorted(await sftp.listdir(".")) == ["a", "b"]


async def test_a_host_key_that_others_can_read_or_that_is_damaged_is_an_error(opened: OpenGateway) -> None:
    key = opened.state / "gateway_host_key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    with pytest.raises(StoreError, match="can be read by others"):
        await opened.another().open("127.0.0.1", 0)
    key.chmod(0o600)
    key.write_text("nonsense")
    with pytest.raises(StoreError, match="not a host key"):
        await opened.another().open("127.0.0.1", 0)


def test_a_host_key_under_the_old_file_name_is_kept(tmp_path: Path) -> None:
    first = load_host_key(tmp_path)
    (tmp_path / "gateway_host_key").rename(tmp_path / "door_host_key")
    assert load_host_key(tmp_path).get_fingerprint() == first.get_fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["gateway_host_key"]


async def test_a_port_in_use_is_an_error_that_names_it(opened: OpenGateway) -> None:
    with pytest.raises(StoreError, match=f"port {opened.port}"):
        await opened.another().open("127.0.0.1", opened.port)
