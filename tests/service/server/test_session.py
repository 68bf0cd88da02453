"""One client's session over a real Unix socket: requests, uploads, watching, and the errors of each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sshgrid.errors import Dropped
from sshgrid.model import (
    Exited,
    JobId,
    Limits,
    OnDisconnect,
    Outcome,
    Phase,
    Program,
    Role,
    SourceFile,
    Submission,
    User,
)
from sshgrid.protocol import codec, messages
from sshgrid.protocol.messages import (
    Accepted,
    Cancel,
    Done,
    Failure,
    Jobs,
    JobsReply,
    Logs,
    Status,
    StatusReply,
    Watch,
)
from sshgrid.protocol.streams import ByteReader, ByteWriter
from sshgrid.scheduler import termination
from sshgrid.server.connected_clients import ConnectedClients
from sshgrid.server.session import ClientSession
from sshgrid.server.uploads import MAX_UPLOADS
from sshgrid.testing import ScriptedGrid, Stage, after, until, until_killed
from tests.service.conftest import Grids
from tests.service.talk import Talk

pytestmark = pytest.mark.usefixtures("quiet_log")

BIG = bytes(range(256)) * 4096 * 5  # 5 MiB
STATUS = StatusReply(1, "0", "", "", "", "", 0.0, 0, {}, 0)


class FakeProcess:
    """The process of a master that a session needs, around a scripted grid."""

    def __init__(self, grid: ScriptedGrid, path: Path) -> None:
        self.grid, self.master, self.path = grid, grid.master, str(path)
        self.clients = ConnectedClients(grid.master.active_jobs.has_ended)
        self.user = User("ann", Role.OWNER)  # of the next connection
        self.inventory_error = ""
        self.left: list[bool] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def status(self) -> StatusReply:
        return STATUS

    def leave(self, drain: bool) -> None:
        self.left.append(drain)

    async def reload_if_changed(self) -> None:
        """The file of this master never changes."""

    async def reload(self) -> None:
        self.inventory_error = "inventory.yaml:1:1: broken"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writers.append(writer)
        try:
            await self.serve_client(reader, writer, self.user, "local")
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def serve_client(self, reader: ByteReader, writer: ByteWriter, user: User, address: str) -> None:
        await ClientSession(self, reader, writer, user, address).serve()

    async def talk(self, **wishes: int | None) -> Talk:
        return await Talk.open(self.path, **wishes)  # type: ignore[arg-type]


@pytest.fixture
async def process(grids: Grids, tmp_path: Path) -> AsyncIterator[FakeProcess]:
    process = FakeProcess(await grids(), tmp_path / "s")
    listener = await asyncio.start_unix_server(process.accept, process.path)
    yield process
    listener.close()
    for task in process.tasks:
        task.cancel()
    await asyncio.gather(*process.tasks, return_exceptions=True)


# --- greeting ---------------------------------------------------------------------------------------------------------


async def test_a_client_of_another_protocol_can_only_ask_for_the_status_and_stop_the_master(
    process: FakeProcess,
) -> None:
    async with await process.talk(protocol=99) as talk:
        assert (await talk.expect(Failure)).code == "version"
        assert await talk.request(Status(), StatusReply) == STATUS
        for request in (Jobs(), Watch(JobId(1)), Logs(JobId(1))):
            assert "protocol" in (await talk.request(request, Failure)).message
        await talk.request(messages.Stop(), Done)
    assert process.left == [False]


async def test_a_client_that_does_not_greet_is_refused(process: FakeProcess) -> None:
    async with await process.talk(protocol=None) as talk:
        assert (await talk.request(Status(), Failure)).code == "version"
        assert await talk.next() is None


HOSTILE = [
    b"\n",
    b"\0\0\0\0\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"SSH-2.0-Go\r\n",
    b'{"type":"nonsense"}\n',
    b'{"type":"hello","version":"\x80"}\n',
    b'{"x":' + b"[" * 100_000 + b"\n",
    b'{"type":"put-blob","sha256":"0","size":99999999999,"last":true}\n',
    b"x" * (codec.MAX_LINE + 300_000),
]


@pytest.mark.parametrize("words", HOSTILE, ids=lambda words: repr(words[:30]))
@pytest.mark.parametrize("greeted", [False, True])
async def test_A33_bytes_that_are_not_the_protocol_are_answered_and_do_not_affect_others(
    process: FakeProcess, words: bytes, greeted: bool
) -> None:
    async with (
        await process.talk() as other,
        await process.talk(protocol=messages.PROTOCOL if greeted else None) as talk,
    ):
        talk.writer.write(words)
        refused = await talk.expect(Failure)
        assert (refused.code, refused.exit_status) == ("usage", 2)
        assert await talk.next() is None
        assert await other.request(Status(), StatusReply) == STATUS


async def test_silent_and_leaving_clients_leave_no_session(process: FakeProcess) -> None:
    async with await process.talk(protocol=None), await process.talk() as other:
        await (await process.talk(protocol=None)).close()
        await (await process.talk()).close()
        assert await other.request(Status(), StatusReply) == STATUS
    await until(lambda: all(task.done() for task in process.tasks), lambda: process.tasks)


# --- requests ---------------------------------------------------------------------------------------------------------

HUGE = JobId(10**30)
NOTHING = Submission(Program("", "", ()), "")
ODD: list[messages.Message] = [
    Watch(JobId(0)),
    Watch(HUGE),
    Logs(JobId(-1)),
    Logs(HUGE, attempt=10**30),
    Cancel((HUGE,), "TERM"),
    Cancel((), "TERM; reboot"),
    Jobs("1-" + "9" * 60),
    Jobs("x" * 5000),
    Jobs(states=("NOPE",), since_seconds=-1e300),
    Jobs(since_seconds=1e300),
    messages.Info(HUGE),
    messages.Remove((HUGE, JobId(0))),
    messages.Hold((HUGE,)),
    messages.Nodes("node[1-99999999999]"),
    messages.Nodes("@@@"),
    messages.CheckNodes("nobody"),
    messages.Toolchains("!"),
    messages.MissingBlobs(("../../etc/passwd",)),
    messages.MissingBlobs(("0" * 64,) * 10_000),
    messages.PutBlob("../../../tmp/x", 0, last=True),
    messages.PutBlob("0" * 64, 0, last=True),
    messages.Submit(NOTHING, "k"),
    messages.Submit(Submission(Program("sh", "a", (SourceFile("a", "zz", -5),)), ""), "k"),
    messages.Submit(Submission(Program("\0", "a", (SourceFile("a", "0" * 64, 1),)), ""), ""),
    messages.Submit(Submission(Program("sh", "a", (), limits=Limits(-1.0, -1, -1)), "", retries=-7), "k" * 9999),
    messages.Explain(NOTHING),
    messages.Backup("relative"),
    messages.Hello("again"),
    messages.Welcome("me", 1),
    messages.Done(),
    messages.Notice("hi"),
    messages.Reload(),
    messages.Status(),
]


async def test_A9_A33_each_request_gets_one_reply_and_the_connection_continues(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        for request in ODD:
            await talk.send(request)
            answer = await talk.next()
            assert answer is not None, request
            assert isinstance(answer[0], messages.Reply), (request, answer)
            if isinstance(answer[0], Failure):
                assert answer[0].message, request
                assert "\n" not in answer[0].message
        assert await talk.request(Status(), StatusReply) == STATUS
    assert process.grid.store.jobs.ids() == []


async def test_a_backup_needs_an_absolute_path(process: FakeProcess, tmp_path: Path) -> None:
    async with await process.talk() as talk:
        assert "absolute" in (await talk.request(messages.Backup("relative"), Failure)).message
        assert "no such" in (await talk.request(messages.Backup(f"{tmp_path}/not/there"), Failure)).message.lower()
        await talk.request(messages.Backup(f"{tmp_path}/copy.db"), Done)
        assert "exists" in (await talk.request(messages.Backup(f"{tmp_path}/copy.db"), Failure)).message
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


async def test_requests_sent_ahead_are_answered_in_order(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        for _ in range(100):
            await talk.send(Status())
            await talk.send(Jobs())
        for _ in range(100):
            await talk.expect(StatusReply)
            await talk.expect(JobsReply)


async def test_requests_before_invalid_bytes_are_answered_first(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        talk.writer.write(codec.encode(Status()) * 20 + b"junk\n" + codec.encode(Status()))
        for _ in range(20):
            await talk.expect(StatusReply)
        assert (await talk.expect(Failure)).code == "usage"
        assert await talk.next() is None


async def test_reload_of_an_invalid_inventory_is_a_failure(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        refused = await talk.request(messages.Reload(), Failure)
        assert (refused.code, refused.message) == ("inventory", "inventory.yaml:1:1: broken")


# --- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x", BIG], ids=["empty", "one byte", "5 MiB"])
@pytest.mark.parametrize("piece_bytes", [1 << 20, 1000])
async def test_an_uploaded_file_is_complete(process: FakeProcess, content: bytes, piece_bytes: int) -> None:
    async with await process.talk() as talk:
        digest = await talk.put(content[: 100 * piece_bytes], piece_bytes)
        assert (await talk.request(messages.MissingBlobs((digest, "0" * 64)), messages.MissingBlobsReply)).sha256 == (
            "0" * 64,
        )
    assert process.grid.spool.blobs.read(digest) == content[: 100 * piece_bytes]


async def test_a_file_with_another_digest_is_refused_with_one_failure(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        for piece in (b"a", b"b"):
            await talk.send(messages.PutBlob("0" * 64, 1, last=False), piece)
        await talk.send(messages.PutBlob("0" * 64, 1, last=True), b"c")
        assert "SHA-256" in (await talk.expect(Failure)).message
        assert await talk.request(Status(), StatusReply) == STATUS


async def test_A33_a_piece_that_cannot_be_stored_is_one_failure_and_the_rest_is_ignored(
    process: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sshgrid.errors import StoreError
    from sshgrid.spool import blobs

    def full(*_: object) -> None:
        raise StoreError("no space left on its disk")

    async with await process.talk() as talk:
        with monkeypatch.context() as patch:
            patch.setattr(blobs.BlobWriter, "append", full)
            await talk.send(messages.PutBlob("0" * 64, 1, last=False), b"a")
            assert "no space" in (await talk.expect(Failure)).message
        for last in (False, False, True):
            await talk.send(messages.PutBlob("0" * 64, 1, last), b"b")
        assert await talk.request(Status(), StatusReply) == STATUS
        digest = await talk.put(b"afterwards")
        assert (await talk.request(messages.MissingBlobs((digest,)), messages.MissingBlobsReply)).sha256 == ()


async def test_A33_the_number_of_files_uploaded_at_once_is_limited(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        for number in range(MAX_UPLOADS + 1):
            await talk.send(messages.PutBlob(f"{number:064x}", 1, last=False), b"x")
        assert "at the same time" in (await talk.expect(Failure)).message
        assert await talk.request(Status(), StatusReply) == STATUS


async def test_F25_an_interrupted_upload_leaves_no_file(process: FakeProcess) -> None:
    talk = await process.talk()
    await talk.send(messages.PutBlob("0" * 64, 4, last=False), b"half")
    await talk.request(Status(), StatusReply)
    assert list(process.grid.spool.blobs.incoming.iterdir()) != []
    await talk.close()
    await until(lambda: list(process.grid.spool.blobs.incoming.iterdir()) == [])


# --- jobs -------------------------------------------------------------------------------------------------------------


async def test_a_job_is_submitted_and_watched_to_its_end(process: FakeProcess) -> None:
    process.grid.engine.plays(after(b"hello\n", Exited(3)))
    async with await process.talk() as talk:
        streams, line = await talk.watch(await talk.submit(b"echo hello\n", "k"))
        assert (streams, line.exit_status, line.user) == ({"stdout": b"hello\n"}, 3, "ann")
        assert await talk.request(Status(), StatusReply) == STATUS


async def test_a_client_has_all_connections_and_jobs_of_a_user_at_an_address(process: FakeProcess) -> None:
    process.grid.engine.plays(until_killed, after(b"", Exited(0)))
    looking, working = await process.talk(), await process.talk()
    job = await working.submit(b"sleep 9\n", "a")
    assert await working.submit(b"sleep 9\n", "a") == job
    await working.watch(await working.submit(b"true\n", "b"))
    (line,) = (await looking.request(messages.Clients(), messages.ClientsReply)).clients
    assert (line.user, line.address, line.programs, line.running, line.connections) == ("ann", "local", 2, 1, 2)
    await working.close()
    await until(lambda: process.clients.lines()[0].connections == 1)
    assert (await looking.request(messages.Jobs(active_only=True, limit=1), JobsReply)).jobs[0].id == job
    assert await looking.request(Cancel((job,), "KILL"), Done) == Done(1)
    await until(lambda: process.clients.lines()[0].running == 0)
    await looking.close()
    await until(lambda: process.clients.lines() == ())
    assert process.grid.master.active_jobs.ended_last_minute() == 2


async def test_a_limited_list_has_running_jobs_before_waiting_ones(process: FakeProcess) -> None:
    process.grid.engine.plays(until_killed)
    process.grid.master.pause()
    async with await process.talk() as talk:
        waiting = await talk.submit(b"sleep 9\n", "a")
        assert await talk.request(messages.Hold((waiting,)), Done) == Done(1)
        process.grid.master.scheduler.paused = False
        running = await talk.submit(b"sleep 9\n", "b")
        await until(lambda: process.grid.master.active_jobs.current(running).phase is Phase.RUNNING)
        for limit, wanted in ((1, [running]), (2, [running, waiting])):
            for query in (Jobs(active_only=True, limit=limit), Jobs(limit=limit)):
                assert [line.id for line in (await talk.request(query, JobsReply)).jobs] == wanted


async def test_5_MiB_of_output_arrive_byte_for_byte(process: FakeProcess) -> None:
    async def much(stage: Stage) -> Outcome:
        for at in range(0, len(BIG), 77_777):
            await stage.say(BIG[at : at + 77_777])
            await stage.say(BIG[at : at + 1000], "stderr")
            await asyncio.sleep(0)
        return Exited(0)

    process.grid.engine.plays(much)
    async with await process.talk() as talk:
        streams, _ = await talk.watch(await talk.submit(b"yes\n", "k"))
    assert streams["stdout"] == BIG
    assert len(streams["stderr"]) == 1000 * (len(BIG) // 77_777) + min(1000, len(BIG) % 77_777)


async def test_fifty_jobs_over_ten_connections_are_not_mixed_up(process: FakeProcess) -> None:
    async def says_its_words(stage: Stage) -> Outcome:
        for word in stage.args:
            await stage.say(word + b"\n")
            await asyncio.sleep(0)
        return Exited(int(stage.args[0]) % 100)

    process.grid.engine.plays(*[says_its_words] * 50)

    async def client(number: int) -> None:
        async with await process.talk() as talk:
            for turn in range(5):
                word = b"%d" % (number * 5 + turn)
                job = await talk.submit(b"# " + word, f"{number}-{turn}", word, b"again " + word)
                streams, line = await talk.watch(job)
                assert streams == {"stdout": word + b"\nagain " + word + b"\n"}
                assert (line.id, line.exit_status) == (job, int(word))

    await asyncio.gather(*(client(number) for number in range(10)))
    assert len(process.grid.store.jobs.ids()) == 50


async def test_F27_a_client_that_never_reads_costs_little_memory_and_delays_no_other(process: FakeProcess) -> None:
    process.grid.engine.plays(after(BIG * 4, Exited(0)))
    async with await process.talk(limit=1024) as deaf, await process.talk() as talk:
        job = await talk.submit(b"yes\n", "k")
        deaf_writer = process.writers[0]
        await deaf.send(Watch(job))
        streams, _ = await talk.watch(job)
        assert streams["stdout"] == BIG * 4
        assert deaf_writer.transport.get_write_buffer_size() < 2 * messages.MAX_PAYLOAD
        streams, _ = await deaf.to_end()
        assert streams["stdout"] == BIG * 4


async def test_the_same_submission_over_two_connections_is_one_job(process: FakeProcess) -> None:
    async with await process.talk() as one, await process.talk() as two:
        jobs = await asyncio.gather(one.submit(b"x", "k"), two.submit(b"x", "k"))
        assert jobs[0] == jobs[1]


# --- requests while watching ------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {name: tuple((signal, 0.02) for signal, _ in steps) for name, steps in termination.ESCALATION.items()}
    monkeypatch.setattr(termination, "ESCALATION", quick)


async def running(process: FakeProcess, talk: Talk) -> JobId:
    process.grid.engine.plays(until_killed)
    job = await talk.submit(b"sleep 9\n", "running")
    await process.grid.begun(job)
    return job


async def test_a_watching_client_can_cancel_the_job(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        job = await running(process, talk)
        await talk.send(Watch(job))
        await talk.until(messages.Progress)
        await talk.send(Cancel((job,), "INT"))
        _, line = await talk.to_end()
        assert (line.state, line.exit_status) == ("CANCELLED", 130)
        assert await talk.request(Status(), StatusReply) == STATUS


@pytest.mark.parametrize("wrong", [Cancel((HUGE,)), Cancel((JobId(1),), "NOPE"), messages.Resize(-1, 1 << 40)], ids=str)
async def test_an_invalid_request_while_watching_is_refused_and_the_watch_continues(
    process: FakeProcess, wrong: messages.Message
) -> None:
    async with await process.talk() as talk:
        job = await running(process, talk)
        await talk.send(Watch(job, on_disconnect=OnDisconnect.CANCEL))
        await talk.until(messages.Progress)
        await talk.send(wrong)
        assert (await talk.until(Failure)).exit_status in (1, 2)
        await talk.send(Cancel((job,)))
        _, line = await talk.to_end()
        assert line.reason == "cancelled (TERM)"


async def test_a_signal_that_cannot_be_sent_is_a_failure_and_the_watch_continues(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        job = await running(process, talk)

        async def silent(*_: object) -> bool:
            raise Dropped("n1", "no answer")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process.grid.engine, "signal", silent)
            await talk.send(Watch(job))
            await talk.send(Cancel((job,), "USR1"))
            assert (await talk.until(Failure)).message == "n1: no answer"
        await talk.send(Cancel((job,)))
        _, line = await talk.to_end()
        assert line.state == "CANCELLED"


async def test_a_request_while_watching_is_answered_after_the_watch(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        job = await running(process, talk)
        await talk.send(Watch(job, on_disconnect=OnDisconnect.CANCEL))
        await talk.send(Status())
        await talk.send(Watch(job))
        await talk.until(messages.Progress)
        await process.grid.master.cancel(Cancel((job,), "INT"), "ann")
        _, line = await talk.to_end()
        assert line.reason == "cancelled (INT by ann)"
        assert await talk.expect(StatusReply) == STATUS
        assert (await talk.to_end())[1] == line


async def test_invalid_bytes_while_watching_are_answered_and_end_the_connection(process: FakeProcess) -> None:
    async with await process.talk() as talk:
        job = await running(process, talk)
        await talk.send(Watch(job))
        await talk.until(messages.Progress)
        await talk.send_raw(b"junk\n")
        assert (await talk.until(Failure)).code == "usage"
        assert await talk.next() is None
    assert process.grid.line(job).state == "RUNNING"


async def test_a_lost_client_does_not_end_its_job(process: FakeProcess) -> None:
    talk = await process.talk()
    job = await running(process, talk)
    await talk.send(Watch(job))
    await talk.until(messages.Progress)
    await talk.close()
    await until(lambda: all(task.done() for task in process.tasks))
    assert (process.grid.line(job).state, process.grid.engine.signals) == ("RUNNING", [])


async def test_a_lost_client_cancels_its_job_with_on_disconnect_cancel(process: FakeProcess) -> None:
    talk = await process.talk()
    job = await running(process, talk)
    await talk.send(Watch(job, on_disconnect=OnDisconnect.CANCEL))
    await talk.until(messages.Progress)
    await talk.close()
    assert (await process.grid.wait(job)).reason == "cancelled (TERM by lost client)"


async def test_a_client_lost_during_output_cancels_its_job(process: FakeProcess) -> None:
    async def chatters(stage: Stage) -> Outcome:
        while not stage.received:
            await stage.say(b"x" * 300_000)
            await asyncio.sleep(0)
        return Exited(0)

    process.grid.engine.plays(chatters)
    talk = await process.talk()
    job = await talk.submit(b"yes\n", "k")
    await talk.send(Watch(job, on_disconnect=OnDisconnect.CANCEL))
    await talk.until(messages.Output)
    await talk.close()
    assert (await process.grid.wait(job)).state == "CANCELLED"


# --- interactive runs -------------------------------------------------------------------------------------------------


async def test_input_reaches_an_interactive_run(process: FakeProcess) -> None:
    async def cat(stage: Stage) -> Outcome:
        assert stage.keyboard is not None
        while piece := await stage.keyboard.get():
            await stage.say(b"%r\n" % (piece,))
        return Exited(0)

    process.grid.engine.plays(cat)
    async with await process.talk() as talk:
        digest = await talk.put(b"cat\n")
        program = Program("sh", "a.sh", (SourceFile("a.sh", digest, 4),))
        job = (await talk.request(messages.Submit(Submission(program, "a.sh", interactive=True), "k"), Accepted)).job
        await talk.send(Watch(job))
        await process.grid.begun(job)
        await talk.send(messages.Input(3), b"a\0b")
        await talk.send(messages.Resize(100, 30))
        await talk.send(messages.Input(0))
        streams, _ = await talk.to_end()
        assert streams == {"stdout": b"b'a\\x00b'\n(100, 30)\n"}
        await talk.send(messages.Input(4), b"late")
        assert await talk.request(Status(), StatusReply) == STATUS
    gc.collect()
