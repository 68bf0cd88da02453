"""The master as a process: its lock, its socket, its inventory file, and runs that survive its death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sshgrid import paths
from sshgrid.daemon import server
from sshgrid.model import JobId
from sshgrid.paths import Places
from sshgrid.protocol.messages import (
    Cancel,
    Done,
    Failure,
    Nodes,
    NodesReply,
    Reload,
    Status,
    StatusReply,
    Stop,
    Watch,
)
from sshgrid.testing import until
from tests.service.conftest import ROOT
from tests.service.talk import Talk

NODE = "{{connection: local, slots: 4, toolchains: [sh], workdir: {workdir}}}"
# Prints "begun", waits for a file, prints "ended".
WAITS = b"""echo begun | tee -a "$1"
while [ ! -e "$2" ]; do sleep 0.05; done
echo ended
exit 7
"""


class Home:
    """An inventory with a local node, a state folder, and the masters that a test starts there, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.inventory = folder / "inventory.yaml"
        self.log = folder / "log"
        self.masters: list[subprocess.Popen[bytes]] = []
        self.write_nodes("here")

    def write_nodes(self, *names: str, text: str = "") -> None:
        node = NODE.format(workdir=self.folder / "work")
        lines = ["version: 1", "nodes:", *(f"  {name}: {node}" for name in names), text]
        aside = self.folder / "inventory.new"
        aside.write_text("\n".join(lines) + "\n")
        aside.replace(self.inventory)

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SSHGRID_")}
        return {**kept, "SSHGRID_HOME": str(self.folder / "home"), "PYTHONPATH": ROOT, "HOME": str(self.folder)}

    @property
    def places(self) -> Places:
        return paths.places(
            str(self.inventory), self.environ, str(self.folder), str(self.folder), state_flag=str(self.state)
        )

    def spawn(self, idle_exit: str = "never") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sshgrid.daemon", str(self.inventory), str(self.state), idle_exit]
        with self.log.open("ab") as log:
            master = subprocess.Popen(
                command, cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.masters.append(master)
        return master

    async def start(self, idle_exit: str = "never") -> subprocess.Popen[bytes]:
        """Start a master and wait until it answers."""
        master = self.spawn(idle_exit)
        await until(lambda: self.answers() or master.poll() is not None, self.output)
        assert master.poll() is None, self.output()
        return master

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.places.socket)
            except OSError:
                return False
            return True

    async def fails(self) -> str:
        """Start a master that must fail with status 125; return what it prints."""
        master = self.spawn()
        await ended(master)
        assert master.returncode == 125, (master.returncode, self.output())
        return self.output()

    def output(self) -> str:
        """What all masters have printed."""
        return self.log.read_text() if self.log.exists() else ""

    async def talk(self) -> Talk:
        return await Talk.open(self.places.socket)

    def runs(self) -> list[str]:
        """The folders of runs on the node."""
        return [run.name for run in (self.folder / "work" / "runs").glob("*")]

    async def close(self) -> None:
        try:
            if any(master.poll() is None for master in self.masters):
                await until(lambda: self.runs() == [], lambda: (self.runs(), self.output()))
        finally:
            for master in self.masters:
                if master.poll() is None:
                    master.terminate()
                    await ended(master)
        assert "Traceback" not in self.output(), self.output()


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(tmp_path)
    yield home
    await home.close()


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process; return its exit status."""
    await until(lambda: process.poll() is not None, lambda: "still running")
    return process.returncode


def begun(home: Home) -> list[str]:
    """A line for each time that the waiting program has begun."""
    file = home.folder / "begun"
    return file.read_text().splitlines() if file.exists() else []


async def submit_waiting(home: Home, talk: Talk, key: str = "k") -> JobId:
    job = await talk.submit(WAITS, key, os.fsencode(home.folder / "begun"), os.fsencode(home.folder / "end"))
    await until(lambda: begun(home), home.output)
    return job


def let_end(home: Home) -> None:
    (home.folder / "end").touch()


# --- programs that run ------------------------------------------------------------------------------------------------


async def test_a_program_runs_and_its_output_is_exact(home: Home) -> None:
    await home.start()
    async with await home.talk() as talk:
        job = await talk.submit(b'printf "%s|" "$@"; echo oops >&2; exit 3\n', "k", b"a b", b"", b"\xff$(id)\n'")
        streams, line = await talk.watch(job)
        assert streams == {"stdout": b"a b||\xff$(id)\n'|", "stderr": b"oops\n"}
        assert (line.state, line.exit_status, line.node) == ("FAILED", 3, "here")


async def test_5_MiB_of_output_pass_the_node_and_the_socket_byte_for_byte(home: Home) -> None:
    await home.start()
    content = bytes(range(256)) * 20480
    async with await home.talk() as talk:
        data = home.folder / "data"
        data.write_bytes(content)
        streams, line = await talk.watch(await talk.submit(b'cat "$1"; cat "$1" >&2\n', "k", os.fsencode(data)))
        assert line.exit_status == 0
        assert streams["stdout"] == content
        assert streams["stderr"] == content


async def test_many_clients_at_once_get_their_own_output(home: Home) -> None:
    await home.start()

    async def client(number: int) -> None:
        async with await home.talk() as talk:
            for turn in range(3):
                word = b"%d-%d" % (number, turn)
                streams, line = await talk.watch(
                    await talk.submit(b'echo "$1"; exit "$2"\n', word.decode(), word, b"5")
                )
                assert (streams["stdout"], line.exit_status) == (word + b"\n", 5)

    await asyncio.gather(*(client(number) for number in range(6)))


# --- one master after another -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_F10_the_next_master_continues_the_runs_of_a_dead_one(home: Home, number: signal.Signals) -> None:
    master = await home.start()
    async with await home.talk() as talk:
        job = await submit_waiting(home, talk)
        await talk.send(Watch(job))
        while b"begun" not in (await talk.next() or (None, b"begun"))[1]:
            pass
        master.send_signal(number)
        while await talk.next():
            pass
    status = await ended(master)
    assert status == (0 if number is not signal.SIGKILL else -signal.SIGKILL)
    assert Path(home.places.socket).exists() == (number is signal.SIGKILL)
    await home.start()
    async with await home.talk() as talk:
        assert (
            await talk.submit(WAITS, "k", os.fsencode(home.folder / "begun"), os.fsencode(home.folder / "end")) == job
        )
        let_end(home)
        streams, line = await talk.watch(job)
    assert (streams["stdout"], line.exit_status, len(line.attempts)) == (b"begun\nended\n", 7, 1)
    assert begun(home) == ["begun"]


async def test_F13_a_run_that_ends_without_a_master_is_settled_once(home: Home) -> None:
    master = await home.start()
    async with await home.talk() as talk:
        job = await submit_waiting(home, talk)
    master.kill()
    await ended(master)
    let_end(home)
    await until(lambda: any_rc(home), home.output)
    await home.start()
    async with await home.talk() as talk:
        streams, line = await talk.watch(job)
    assert (streams["stdout"], line.exit_status, len(line.attempts)) == (b"begun\nended\n", 7, 1)


def any_rc(home: Home) -> bool:
    """Whether a run on the node has its record, which is a symbolic link without a target."""
    return any(os.path.lexists(run / "rc") for run in (home.folder / "work" / "runs").glob("*"))


async def test_a_stopped_master_removes_the_run_that_has_just_ended(home: Home) -> None:
    master = await home.start()
    async with await home.talk() as talk:
        await talk.watch(await talk.submit(b"exit 0\n", "k"))
        master.terminate()
    await ended(master)
    assert home.runs() == []


async def test_a_second_master_in_one_state_folder_is_refused(home: Home) -> None:
    await home.start()
    assert "error: another master already works in" in await home.fails()
    async with await home.talk() as talk:
        await talk.request(Status(), StatusReply)


async def test_an_idle_master_leaves_and_a_busy_one_does_not(home: Home) -> None:
    master = await home.start("300ms")
    async with await home.talk() as talk:
        job = await submit_waiting(home, talk)
    looks = 0

    def looked() -> bool:
        nonlocal looks
        looks += 1
        return looks > 400 or master.poll() is not None

    await until(looked)
    assert master.poll() is None, home.output()
    let_end(home)
    assert await ended(master) == 0
    assert "idle for" in home.output()
    await home.start()
    async with await home.talk() as talk:
        assert (await talk.watch(job))[1].exit_status == 7


async def test_after_stop_the_runs_continue_on_their_nodes(home: Home) -> None:
    master = await home.start()
    async with await home.talk() as talk:
        job = await submit_waiting(home, talk)
        await talk.request(Stop(), Done)
        assert await ended(master) == 0
    await home.start()
    async with await home.talk() as talk:
        await talk.request(Cancel((job,), "KILL"), Done)
        _, line = await talk.watch(job)
        assert (line.state, line.exit_status) == ("CANCELLED", 137)


async def test_a_draining_master_waits_for_its_runs_and_starts_no_others(home: Home) -> None:
    master = await home.start()
    async with await home.talk() as talk:
        job = await submit_waiting(home, talk)
        await talk.request(Stop(drain=True), Done)
        later = await talk.submit(b"echo later\n", "later")
        let_end(home)
        assert await ended(master) == 0
    await home.start()
    async with await home.talk() as talk:
        assert (await talk.watch(job))[1].exit_status == 7
        streams, line = await talk.watch(later)
        assert (streams["stdout"], len(line.attempts)) == (b"later\n", 1)


# --- the inventory file -----------------------------------------------------------------------------------------------


async def nodes_of(talk: Talk) -> dict[str, str]:
    return {line.name: line.state for line in (await talk.request(Nodes(), NodesReply)).nodes}


async def becomes(talk: Talk, look: Callable[[StatusReply, dict[str, str]], bool]) -> StatusReply:
    """Ask until the status and the states of the nodes are as wanted."""
    deadline = time.monotonic() + 15
    while True:
        status, nodes = await talk.request(Status(), StatusReply), await nodes_of(talk)
        if look(status, nodes):
            return status
        assert time.monotonic() < deadline, (status, nodes)


async def test_a_changed_inventory_is_used_without_a_restart(home: Home) -> None:
    await home.start()
    async with await home.talk() as talk:
        home.write_nodes("here", "there")
        await becomes(talk, lambda _, nodes: set(nodes) == {"here", "there"} and nodes["there"] == "IDLE")
        home.write_nodes("there")
        await becomes(talk, lambda _, nodes: set(nodes) == {"there"})
        streams, line = await talk.watch(await talk.submit(b"echo $SSHGRID_NODE\n", "k"))
        assert (streams["stdout"], line.exit_status) == (b"there\n", 0)


async def test_a_removed_node_is_dropped_when_its_run_has_ended(home: Home) -> None:
    await home.start()
    async with await home.talk() as talk:
        job = await submit_waiting(home, talk)
        home.write_nodes("there")
        await becomes(talk, lambda _, nodes: nodes.get("here") == "DRAINING" and "there" in nodes)
        let_end(home)
        _, line = await talk.watch(job)
        assert (line.node, line.exit_status, len(line.attempts)) == ("here", 7, 1)
        await becomes(talk, lambda _, nodes: set(nodes) == {"there"})


async def test_an_inventory_with_errors_changes_nothing_and_is_reported(home: Home) -> None:
    await home.start()
    async with await home.talk() as talk:
        home.write_nodes("here", text="nonsense: 1")
        status = await becomes(talk, lambda status, _: bool(status.inventory_error))
        assert "inventory.yaml:4:1" in status.inventory_error
        assert list(await nodes_of(talk)) == ["here"]
        assert (await talk.request(Reload(), Failure)).code == "inventory"
        assert (await talk.watch(await talk.submit(b"exit 4\n", "k")))[1].exit_status == 4
        home.inventory.unlink()
        status = await becomes(talk, lambda status, _: "no such" in status.inventory_error.lower())
        home.write_nodes("here")
        await becomes(talk, lambda status, _: not status.inventory_error)
        await talk.request(Reload(), Done)


async def test_a_master_does_not_start_with_an_invalid_inventory(home: Home) -> None:
    home.write_nodes("here", text="nonsense: 1")
    assert "error: " in await home.fails()


# --- the socket -------------------------------------------------------------------------------------------------------


async def test_A40_only_the_owner_can_open_socket_and_state(home: Home) -> None:
    await home.start()
    modes = {
        path.name: stat.S_IMODE(path.lstat().st_mode)
        for path in (home.state, Path(home.places.socket), home.state / "queue.db", home.state / "spool")
    }
    assert modes == {"state": 0o700, "master.sock": 0o600, "queue.db": 0o600, "spool": 0o700}


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o750, 0o702])
async def test_A40_a_state_folder_that_others_can_enter_is_refused(home: Home, mode: int) -> None:
    home.state.mkdir()
    home.state.chmod(mode)
    output = await home.fails()
    assert f"{home.state}: can be" in output
    assert "by others" in output
    assert "hint: chmod 700" in output


async def test_the_socket_of_a_dead_master_is_replaced(home: Home) -> None:
    master = await home.start()
    master.kill()
    await ended(master)
    assert Path(home.places.socket).exists()
    await home.start()


async def test_a_file_in_the_place_of_the_socket_is_not_removed(home: Home) -> None:
    home.state.mkdir(mode=0o700)
    thing = Path(home.places.socket)
    thing.write_text("precious")
    assert "in the place of the master's socket" in await home.fails()
    assert thing.read_text() == "precious"
    thing.unlink()


async def test_A33_bytes_that_are_not_the_protocol_leave_no_traceback(home: Home) -> None:
    await home.start()
    for words in (b"junk\n", b'{"x":' + b"[" * 100_000 + b"\n", b'{"type":"hello","version":"\x80"}\n', bytes(70_000)):
        talk = await Talk.open(home.places.socket, protocol=None)
        talk.writer.write(words)
        talk.writer.write_eof()
        while found := await talk.next():
            assert isinstance(found[0], Failure)
        await talk.close()
    async with await home.talk() as talk:
        await talk.request(Status(), StatusReply)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_a_process_of_another_user_is_not_served(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = tmp_path / "open"
        folder.mkdir()
        listener.bind(str(folder / "s"))
        listener.listen(2)
        assert [_peer_of(listener, folder / "s", user) for user in (0, 65534)] == ["root", None]


def _peer_of(listener: socket.socket, path: Path, user: int) -> str | None:
    """The user that the master finds behind a connection from a process of `user`."""
    ours, theirs = os.pipe()
    descriptor = os.open(path.parent, os.O_PATH)
    child = os.fork()
    if child == 0:  # the folder is opened by its descriptor: this user may not have access to the folders above it
        path.chmod(0o666)
        os.fchdir(descriptor)
        os.setuid(user)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path.name)
            os.read(ours, 1)
        os._exit(0)
    accepted, _ = listener.accept()
    try:
        return server._peer(accepted)
    finally:
        accepted.close()
        for end in (theirs, ours, descriptor):
            os.close(end)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- a damaged or missing queue ---------------------------------------------------------------------------------------


async def test_a_master_does_not_start_with_a_damaged_queue(home: Home) -> None:
    master = await home.start()
    async with await home.talk() as talk:
        await talk.watch(await talk.submit(b"exit 0\n", "k"))
    await until(lambda: home.runs() == [], home.runs)
    master.terminate()
    await ended(master)
    queue = home.state / "queue.db"
    with queue.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 8000)
    output = await home.fails()
    assert f"error: {queue}: damaged" in output
    assert "hint: " in output
    assert not Path(home.places.socket).exists()


async def test_a_master_does_not_start_with_a_file_that_is_not_a_queue(home: Home) -> None:
    home.state.mkdir(mode=0o700)
    queue = home.state / "queue.db"
    queue.write_bytes(b"not a database, but long enough to look at" * 40)
    queue.chmod(0o600)
    assert "not a queue of sshgrid" in await home.fails()


async def test_a_master_stops_with_an_error_when_its_queue_is_removed(home: Home) -> None:
    master = await home.start()
    async with await home.talk() as talk:
        job = await submit_waiting(home, talk)
        queue = home.state / "queue.db"
        kept = home.folder / "kept.db"
        queue.rename(kept)
        let_end(home)
        assert await ended(master) == 125
        assert "was removed or replaced while in use" in home.output()
    for ending in ("-wal", "-shm"):
        side = home.state / f"queue.db{ending}"
        if side.exists():
            side.rename(f"{kept}{ending}")
    with sqlite3.connect(kept) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    kept.rename(queue)
    await home.start()
    async with await home.talk() as talk:
        _, line = await talk.watch(job)
        assert (line.exit_status, len(line.attempts)) == (7, 1)
