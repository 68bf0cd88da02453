"""The SSH server inside the master's process: commands, terminals, SFTP, and refused connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import psutil
import pytest

from sshgrid.errors import Unreachable
from sshgrid.ssh import local_server
from sshgrid.ssh.connect import end
from sshgrid.testing import until
from tests.lab.machine import descendants, is_alive


@pytest.fixture
async def connection() -> AsyncIterator[asyncssh.SSHClientConnection]:
    before = set(descendants(os.getpid()))
    connection = await local_server.serve_local()
    yield connection
    await end(connection)
    left = set(descendants(os.getpid())) - before
    assert not left, "a command has outlived its connection"


async def ended(pid: int) -> None:
    await until(lambda: not is_alive(pid))


def output(done: asyncssh.SSHCompletedProcess) -> bytes:
    assert isinstance(done.stdout, bytes)
    return done.stdout


async def run(
    connection: asyncssh.SSHClientConnection, command: str, typed: bytes = b""
) -> asyncssh.SSHCompletedProcess:
    return await connection.run(command, input=typed, encoding=None, timeout=20)


@pytest.mark.parametrize("status", [0, 1, 3, 126, 127, 128, 255])
async def test_exit_status_is_returned(connection: asyncssh.SSHClientConnection, status: int) -> None:
    assert (await run(connection, f"exit {status}")).exit_status == status


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV"])
async def test_signal_is_reported_as_a_signal(connection: asyncssh.SSHClientConnection, name: str) -> None:
    done = await run(connection, f"kill -{name} $$")
    assert done.exit_signal
    assert done.exit_signal[0] == name
    assert done.returncode == -signal.Signals[f"SIG{name}"]


async def test_streams_are_exact_and_separate(connection: asyncssh.SSHClientConnection) -> None:
    content = bytes(range(256)) * 1000
    done = await run(connection, "cat; cat >/dev/null; echo err >&2", content)
    assert (done.stdout, done.stderr) == (content, b"err\n")


async def test_output_is_complete_when_the_command_ends_at_once(
    connection: asyncssh.SSHClientConnection,
) -> None:
    async def one(number: int) -> bool:
        done = await run(connection, f"head -c 100000 /dev/zero; printf %s {number}")
        return done.stdout == bytes(100000) + str(number).encode()

    for start in range(0, 40, 4):
        assert all(await asyncio.gather(*(one(number) for number in range(start, start + 4))))


async def test_each_command_has_a_session_of_its_own(connection: asyncssh.SSHClientConnection) -> None:
    done = await run(connection, "ps -o sid= -p $$; echo $$")
    sid, pid = (int(word) for word in output(done).split())
    assert sid == pid != os.getsid(0)


async def test_F27_slow_reader_blocks_the_command(connection: asyncssh.SSHClientConnection) -> None:
    before = psutil.Process().memory_info().rss
    process = await connection.create_process("echo $$ >&2; exec head -c 1000000000 /dev/zero", encoding=None)
    pid = int(await process.stderr.readline())
    written = [-1, 0]

    def progress() -> int:
        text = Path(f"/proc/{pid}/io").read_text()
        return int(text.split("wchar: ")[1].split()[0])

    async with asyncio.timeout(30):
        while written[-1] != written[-2] or written[-1] == 0:
            written.append(progress())
            await asyncio.sleep(0.2)  # the command is blocked when it has written nothing more after this time
    assert written[-1] < 30 << 20, "the command was not blocked"
    assert psutil.Process().memory_info().rss - before < 60 << 20
    assert (await run(connection, "echo still here")).stdout == b"still here\n"
    process.close()
    await ended(pid)


async def test_command_can_leave_its_input_unread(connection: asyncssh.SSHClientConnection) -> None:
    assert (await run(connection, "exit 4", bytes(3_000_000))).exit_status == 4


async def test_sftp_puts_and_gets(connection: asyncssh.SSHClientConnection, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(2_000_000))
    async with connection.start_sftp_client() as sftp:
        await sftp.put(str(tmp_path / "a"), str(tmp_path / "b"))
        assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await sftp.stat(str(tmp_path / "c"))


async def test_terminal_has_a_size_and_passes_ctrl_c(connection: asyncssh.SSHClientConnection) -> None:
    process = await connection.create_process(
        "trap 'echo got; exit 9' INT; stty size; tty; while :; do sleep 0.02; done",
        encoding=None,
        term_type="xterm",
        term_size=(123, 45),
    )
    assert (await process.stdout.readline()).strip() == b"45 123"
    assert (await process.stdout.readline()).startswith(b"/dev/pts/")
    process.stdin.write(b"\x03")
    done = await asyncio.wait_for(process.wait(), 20)
    assert done.exit_status == 9
    assert b"got" in output(done)


async def test_more_terminals_than_threads_can_be_open(connection: asyncssh.SSHClientConnection) -> None:
    count = 40
    processes = [
        await connection.create_process("read x; echo $x; exit 3", encoding=None, term_type="xterm")
        for _ in range(count)
    ]
    for number, process in enumerate(processes):
        process.stdin.write(b"word%d\n" % number)
    async with asyncio.timeout(20):
        results = [await process.wait() for process in processes]
    assert [result.exit_status for result in results] == [3] * count
    assert all(b"word%d" % number in output(result) for number, result in enumerate(results))


async def test_terminal_hangs_up_when_its_channel_closes(connection: asyncssh.SSHClientConnection) -> None:
    process = await connection.create_process("echo $$; exec sleep 1000", encoding=None, term_type="xterm")
    pid = int(await process.stdout.readline())
    process.close()
    await ended(pid)


async def test_detached_process_survives_and_delays_nothing() -> None:
    connection = await local_server.serve_local()
    command = "setsid -f sh -c 'echo $$ >&3; exec sleep 1000' 3>&1 </dev/null >/dev/null 2>&1; sleep 0.1"
    process = await connection.create_process(command, encoding=None)
    pid = int(await process.stdout.readline())
    await end(connection)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_forwarding_and_scp_are_refused(connection: asyncssh.SSHClientConnection) -> None:
    with pytest.raises(asyncssh.ChannelOpenError):
        await connection.open_connection("127.0.0.1", 1)
    with pytest.raises(asyncssh.ChannelListenError):
        await connection.start_server(lambda *_: None, "127.0.0.1", 0)


async def test_no_port_stays_open() -> None:
    before = {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    connection = await local_server.serve_local()
    after = {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert after == before
    port = connection.get_extra_info("peername")[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
    await end(connection)


def test_connection_of_another_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process connects between listen and connect: neither of the two sockets is used."""
    others: list[socket.socket] = []
    connect = socket.create_connection

    def beaten(address: tuple[str, int], timeout: float) -> socket.socket:
        others.append(connect(address, timeout=timeout))
        return connect(address, timeout=timeout)

    monkeypatch.setattr(socket, "create_connection", beaten)
    with pytest.raises(Unreachable, match="another process took"):
        local_server._loopback_pair()
    other = others[0]
    other.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        assert other.recv(1) == b""
    other.close()


async def test_key_of_another_process_is_refused() -> None:
    """A process that has the socket cannot log in: only the key that was made for the connection is accepted."""
    client_socket, server_socket = local_server._loopback_pair()
    host_key, right, wrong = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))
    server = asyncssh.run_server(
        server_socket,
        server_host_keys=[host_key],
        authorized_client_keys=asyncssh.import_authorized_keys(right.export_public_key().decode()),
        password_auth=False,
        kbdint_auth=False,
    )
    client = asyncssh.run_client(
        client_socket,
        config=None,
        known_hosts=None,
        username="local",
        client_keys=[wrong],
        agent_path=None,
        password="x",
    )
    results = await asyncio.gather(server, client, return_exceptions=True)
    assert isinstance(results[1], asyncssh.PermissionDenied)
