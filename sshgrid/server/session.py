"""One client's connection: greet, then answer request after request; one table from requests to what the master does.

While a job is watched, the client may already send the next words (cancel, input): they are read at the same time.
Refuses nothing silently: every error that is the client's is answered as one, and the connection goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, assert_never

import msgspec

from sshgrid.errors import NotAllowed, SshgridError, UsageError, no_such_job
from sshgrid.model import JobId, OnDisconnect, Submission, User, job_text
from sshgrid.policy import access
from sshgrid.protocol.codec import Decoder, encode, failure
from sshgrid.protocol.messages import (
    PROTOCOL,
    Accepted,
    Backup,
    Blobs,
    Cancel,
    CheckNodes,
    Clients,
    ClientsReply,
    Diagnose,
    DiagnoseReply,
    Done,
    Event,
    Execute,
    Explain,
    Failure,
    Hello,
    Hold,
    Info,
    Input,
    Jobs,
    JobsReply,
    Logs,
    Message,
    MissingBlobs,
    Nodes,
    NodesReply,
    PutBlob,
    Question,
    Reload,
    Remove,
    Reply,
    Request,
    Resize,
    Status,
    StatusReply,
    Stop,
    Submit,
    TakeFile,
    Taken,
    Toolchains,
    ToolchainsReply,
    Watch,
    Welcome,
)
from sshgrid.protocol.streams import ByteReader, ByteWriter
from sshgrid.protocol.sweep_messages import ProgressOf, Retry, Tasks, TasksReply, WatchSweep
from sshgrid.protocol.user_messages import (
    AddKey,
    AddUser,
    DisableUser,
    RemoveKey,
    RemoveUser,
    SetCaps,
    SetPassword,
    Users,
    UsersQuestion,
)
from sshgrid.scheduler import admission
from sshgrid.server.presence import ConnectedClients
from sshgrid.spool.blobs import BlobWriter
from sshgrid.version import VERSION

if TYPE_CHECKING:
    from sshgrid.master import Master

audit = logging.getLogger("sshgrid.audit")

READ_BYTES = 256 * 1024
AT_ONCE = 8  # so many messages of one client, then it is the others' turn
UNSENT_BYTES = 64 * 1024
MAX_UPLOADS = 64


class MasterProcess(Protocol):
    """The process that the session is part of."""

    master: Master
    clients: ConnectedClients
    inventory_error: str

    def status(self) -> StatusReply: ...

    def leave(self, drain: bool) -> None: ...

    async def reload(self) -> None: ...

    async def reload_if_changed(self) -> None: ...


class ClientSession:
    """A greeted client."""

    def __init__(
        self,
        server: MasterProcess,
        reader: ByteReader,
        writer: ByteWriter,
        person: User,
        address: str = "local",
    ) -> None:
        self._server = server
        self._master = server.master
        self._reader = reader
        self._writer = writer
        self._person = person
        self._client = server.clients.came(person.name, address)
        self._brought: dict[str, int] = {}  # digest -> bytes that came for it here and belong to no job yet
        self._stranger = False  # speaks another protocol
        self._incoming: dict[str, BlobWriter] = {}
        self._refused: set[str] = set()  # files of which a piece could not be taken, while the rest still comes
        self._decoder = Decoder()
        self._inbox: deque[tuple[Message, bytes]] = deque()  # came, and not answered yet
        self._garbled: UsageError | None = None
        self._taken = 0
        self._unsent = bytearray()  # what a watcher is told: much of it at the same moment

    async def serve(self) -> None:
        """Until the client leaves."""
        try:
            if await self._greet():
                await self._answer_all()
        finally:
            self._server.clients.left(self._client)
            for blob in self._incoming.values():
                blob.abort()

    async def _next(self) -> tuple[Message, bytes] | None:
        """The next message; None when the client has left. UsageError when what it says is not our protocol.

        Read by whoever waits for it: a task of its own for that would be one more turn in a busy master.
        """
        self._taken += 1
        if self._taken % AT_ONCE == 0:
            await asyncio.sleep(0)
        while not self._inbox:
            if self._garbled:
                raise self._garbled
            try:
                piece = await self._reader.read(READ_BYTES)
            except ConnectionError:
                return None
            if not piece:
                return None
            try:
                for message in self._decoder.feed(piece):
                    self._inbox.append(message)
            except UsageError as error:
                self._garbled = error  # what came before it is answered first
        return self._inbox.popleft()

    async def _next_or_refuse(self) -> tuple[Message, bytes] | None:
        """The next message; None when nothing that could be understood will follow."""
        try:
            return await self._next()
        except UsageError as error:
            await self._send(failure(error))
            return None

    async def _send(self, message: Message, payload: bytes = b"") -> None:
        self._flush()
        self._writer.write(encode(message, payload))
        await self._writer.drain()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, bytearray()
        if unsent:
            self._writer.write(bytes(unsent))

    def _flush_unless_left(self) -> None:
        with contextlib.suppress(ConnectionError):  # the next word to it says so, too
            self._flush()

    async def _greet(self) -> bool:
        found = await self._next_or_refuse()
        if found is None:
            return False
        hello = found[0]
        if not isinstance(hello, Hello) or hello.protocol != PROTOCOL:
            await self._send(Failure("version", f"this master speaks protocol {PROTOCOL} of sshgrid {VERSION}"))
            # One that speaks otherwise may still ask what this is and end it: that is how it is replaced.
            self._stranger = True
            return isinstance(hello, Hello)
        await self._send(Welcome(VERSION, os.getpid()))
        return True

    async def _answer_all(self) -> None:
        while found := await self._next_or_refuse():
            message, payload = found
            try:
                self._refuse_stranger(message)
                self._check_right(message)
                if not isinstance(message, Watch | WatchSweep | Logs):
                    await self._answer(message, payload)
                elif not await self._show(message):
                    return
            except SshgridError as error:
                await self._send(failure(error))

    def _refuse_stranger(self, message: Message) -> None:
        if self._stranger and not isinstance(message, Status | Stop):
            raise UsageError(f"this master speaks protocol {PROTOCOL} of sshgrid {VERSION}")

    def _check_right(self, message: Message, watched: JobId | None = None) -> None:
        """NoSuchJob or NotAllowed unless this person may ask this."""
        if not isinstance(message, Request):
            return  # refused by whoever has to answer it
        jobs = access.concerned(message) or (() if watched is None else (watched,))
        owners: list[str | None] = [None]
        if jobs and not access.sees_all(self._person):
            owners = [self._master.active_jobs.current(job).owner for job in jobs]
        for number, owner in enumerate(owners):
            match access.may(self._person, message, owner):
                case access.Hidden():
                    raise no_such_job(job_text(jobs[number]))
                case access.Refused(why):
                    audit.warning("%s was refused: %s", self._person.name, type(message).__name__)
                    raise NotAllowed(why)

    # --- questions with one answer

    async def _answer(self, message: Message, payload: bytes) -> None:
        if isinstance(message, PutBlob):
            self._take(message, payload)
        elif isinstance(message, Input | Resize):
            return  # words for an interactive run that has just ended
        elif isinstance(message, Question):
            self._master.spool.blobs.publish()  # what was uploaded before
            await self._send(await self._reply(message))
        else:
            raise UsageError(f"{type(message).__name__} is not a request")

    async def _reply(self, message: Question) -> Reply:  # noqa: C901 - one match holds every request
        master = self._master
        if isinstance(message, Submit | Diagnose | Execute | Explain | Nodes | CheckNodes | Toolchains):
            await self._server.reload_if_changed()
        match message:
            case MissingBlobs(sha256):
                return Blobs(tuple(dict.fromkeys((*master.spool.blobs.missing(sha256), *self._foreign(sha256)))))
            case TakeFile():
                return Taken(await master.local_files.take(message))
            case Submit():
                return await self._submit(message)
            case Cancel():
                return Done(await self._cancel(message))
            case Jobs():
                return JobsReply(tuple(await master.jobs(message, access.seen_by(self._person))))
            case Info(job):
                return JobsReply((master.line(master.active_jobs.current(job), explain=True),))
            case Remove(jobs):
                return Done(await master.remove(jobs))
            case Hold(jobs, release):
                return Done(await master.hold(jobs, release))
            case Nodes():
                return NodesReply(tuple(await master.nodes(message)))
            case CheckNodes(selector):
                return NodesReply(tuple(await master.check_nodes(selector)))
            case Diagnose(selector):
                return DiagnoseReply(await master.diagnose(selector))
            case Execute():
                return await master.execute(message)
            case Explain(submission):
                self._check_files(submission)
                return await master.explain(submission)
            case Toolchains(selector):
                return ToolchainsReply(await master.toolchains(selector))
            case Status():
                return self._status()
            case Clients():
                mine = access.seen_by(self._person)
                return ClientsReply(tuple(line for line in self._server.clients.lines() if mine in ("", line.user)))
            case Reload():
                return await self._reload()
            case Backup(path):
                return self._back_up(Path(path))
            case Stop(drain):
                audit.info("%s ends the master", self._person.name)
                self._server.leave(drain)
                return Done()
            case ProgressOf(job):
                return master.sweep_report.progress(master.active_jobs.current(job))
            case Tasks(job, states):
                return TasksReply(master.sweep_report.tasks(master.active_jobs.current(job), states))
            case Retry(jobs, failed):
                return Done(await master.retry(jobs, failed))
            case (
                Users() | AddUser() | RemoveUser() | DisableUser() | SetPassword() | AddKey() | RemoveKey() | SetCaps()
            ):
                return await self._answer_about_people(message)
            case _:
                assert_never(message)

    async def _submit(self, message: Submit) -> Accepted:
        self._check_files(message.submission)
        name = self._person.name
        job = await self._master.submit(message.submission, message.key, name)
        self._client.brought(job)
        self._master.people.used(name, sum(self._brought.values()))
        self._brought = dict.fromkeys(self._brought, 0)
        audit.info("%s submitted job %d: %s", name, job, ascii(message.submission.program.entry))
        return Accepted(job)

    async def _cancel(self, message: Cancel) -> int:
        count = await self._master.cancel(message)
        if count:
            ids = ",".join(map(str, message.jobs[:20])) + (",..." if len(message.jobs) > 20 else "")
            audit.info("%s sent %s to job %s", self._person.name, message.signal, ids)
        return count

    async def _answer_about_people(self, message: UsersQuestion) -> Reply:
        reply = await self._master.people.answer(message)
        if not isinstance(message, Users):
            audit.info("%s: %s %s", self._person.name, type(message).__name__, message.name)
        return reply

    def _status(self) -> StatusReply:
        """Of the whole grid, or for a user what is the user's business: no paths of the host, no others' jobs."""
        status = self._server.status()
        if access.sees_all(self._person):
            return status
        return msgspec.structs.replace(
            status,
            socket="",
            state_dir="",
            inventory="",
            inventory_error="the inventory has errors" if status.inventory_error else "",
            jobs_by_state=self._master.counts(self._person.name),
        )

    def _foreign(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Files that this person has neither sent here nor in a job: to know a digest is no right to the file."""
        unknown = set() if access.sees_all(self._person) else set(digests) - self._brought.keys()
        return tuple(unknown - self._master.store.jobs.blobs(self._person.name)) if unknown else ()

    def _check_files(self, submission: Submission) -> None:
        if missing := self._foreign(admission.digests(submission, self._master.spool)):
            raise UsageError(f"{len(missing)} files of this job were not uploaded")

    def _back_up(self, path: Path) -> Reply:
        if not path.is_absolute():  # ours is not the folder that the client stands in
            raise UsageError(f"{path}: not an absolute path")
        self._master.store.backup(path)
        return Done()

    async def _reload(self) -> Reply:
        await self._server.reload()
        if self._server.inventory_error:
            return Failure("inventory", self._server.inventory_error, "sshgrid inventory check")
        return Done(len(self._master.pool.nodes))

    def _take(self, message: PutBlob, piece: bytes) -> None:
        """A piece of a file; a failure is told once and the rest of that file is dropped."""
        sha256 = message.sha256
        if sha256 in self._refused:
            if message.last:
                self._refused.discard(sha256)
            return
        if sha256 not in self._incoming and message.last and self._master.spool.blobs.holds(sha256, piece):
            self._brought.setdefault(sha256, 0)
            return
        blob = self._incoming.get(sha256) or self._begin_upload(sha256)
        try:
            if not access.sees_all(self._person):
                self._master.people.took(self._person.name, len(piece))
            blob.append(piece)
            if message.last:
                blob.finish_later()
            self._brought[sha256] = self._brought.get(sha256, 0) + len(piece)
        except SshgridError:
            blob.abort()
            if not message.last:
                self._refused.add(sha256)
            raise
        finally:
            if message.last or sha256 in self._refused:
                self._incoming.pop(sha256, None)

    def _begin_upload(self, sha256: str) -> BlobWriter:
        if len(self._incoming) >= MAX_UPLOADS:
            raise UsageError(f"more than {MAX_UPLOADS} files are uploaded at the same time")
        blob = self._incoming[sha256] = self._master.spool.blobs.writer(sha256)
        return blob

    # --- watching

    async def _show(self, request: Watch | WatchSweep | Logs) -> bool:
        """Events to the end of the job; False when the client left before it."""
        async with self._master.watch(request) as events:
            showing = asyncio.create_task(self._show_events(events))
            listening = asyncio.create_task(self._listen(request.job))
            try:
                await asyncio.wait({showing, listening}, return_when=asyncio.FIRST_COMPLETED)
                if listening.done() and listening.result():
                    await asyncio.wait({showing})
                ended = showing.done()
            finally:
                for task in (showing, listening):
                    task.cancel()
                await asyncio.gather(showing, listening, return_exceptions=True)
        if ended:
            with contextlib.suppress(ConnectionError):  # it left while it was told something
                showing.result()
                return True
        if isinstance(request, Watch) and request.on_disconnect is OnDisconnect.CANCEL:
            await self._master.cancel(Cancel((request.job,), "TERM"), "lost client")
        return False

    async def _show_events(self, events: AsyncIterator[tuple[Event, bytes]]) -> None:
        """Events of one moment in one write: each wakes the client up."""
        async for event, payload in events:
            if not self._unsent:
                asyncio.get_running_loop().call_soon(self._flush_unless_left)
            self._unsent += encode(event, payload)
            if len(self._unsent) >= UNSENT_BYTES:
                self._flush()
            await self._writer.drain()
        self._flush()
        await self._writer.drain()

    async def _listen(self, job: JobId) -> bool:
        """What the client says while it watches. False: it left. True: its next question came, which has to wait."""
        with contextlib.suppress(ConnectionError):
            while found := await self._next_or_refuse():
                try:
                    if not await self._hear(job, *found):
                        self._inbox.appendleft(found)
                        return True
                except SshgridError as error:
                    await self._send(failure(error))
        return False

    async def _hear(self, job: JobId, message: Message, payload: bytes) -> bool:
        """Words that belong to what is watched; False when these do not."""
        if isinstance(message, Cancel | Input | Resize):
            self._check_right(message, job)
        match message:
            case Cancel():
                await self._cancel(message)
            case Input():
                await self._master.typed(job, payload)
            case Resize(columns, rows):
                await self._master.resized(job, columns, rows)
            case _:
                return False
        return True
