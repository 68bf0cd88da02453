"""One client's session: greet, then answer request after request.

While a job is watched, the client may send `Cancel`, `Input` or `Resize` for it. An error that the client causes is
answered with `Failure`, and the session continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import assert_never

import msgspec

from sshgrid.errors import NotAllowed, SshgridError, UsageError, no_such_job
from sshgrid.model import JobId, OnDisconnect, User, job_text
from sshgrid.policy import access
from sshgrid.protocol.codec import failure
from sshgrid.protocol.messages import (
    PROTOCOL,
    Accepted,
    Backup,
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
    MissingBlobsReply,
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
    TakeFileReply,
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
from sshgrid.server.grid import MasterProcess
from sshgrid.server.message_stream import MessageStream
from sshgrid.server.uploads import Uploads
from sshgrid.version import VERSION

audit = logging.getLogger("sshgrid.audit")

WRONG_PROTOCOL = f"this master speaks protocol {PROTOCOL} of sshgrid {VERSION}"


class ClientSession:
    """The session of one authenticated user. `address` says where the client is, "local" for the Unix socket."""

    def __init__(
        self,
        process: MasterProcess,
        reader: ByteReader,
        writer: ByteWriter,
        user: User,
        address: str = "local",
    ) -> None:
        self._process = process
        self._grid = process.master
        self._stream = MessageStream(reader, writer)
        self._user = user
        self._client = process.clients.connected(user.name, address)
        self._uploads = Uploads(process.master, user)
        self._other_protocol = False  # the client speaks another version

    async def serve(self) -> None:
        """Answer requests until the client leaves. Raises ConnectionError when it leaves during an answer."""
        try:
            if await self._greet():
                await self._answer_all()
        finally:
            self._process.clients.disconnected(self._client)
            self._uploads.close()

    async def _greet(self) -> bool:
        """Whether the session may continue."""
        found = await self._stream.next()
        if found is None:
            return False
        hello = found[0]
        if not isinstance(hello, Hello) or hello.protocol != PROTOCOL:
            await self._stream.send(Failure("version", WRONG_PROTOCOL))
            # A client of another version may still ask for the status and stop this master, in order to replace it.
            self._other_protocol = True
            return isinstance(hello, Hello)
        await self._stream.send(Welcome(VERSION, os.getpid()))
        return True

    async def _answer_all(self) -> None:
        while found := await self._stream.next():
            message, payload = found
            try:
                if self._other_protocol and not isinstance(message, Status | Stop):
                    raise UsageError(WRONG_PROTOCOL)
                self._authorize(message)
                if not isinstance(message, Watch | WatchSweep | Logs):
                    await self._answer(message, payload)
                elif not await self._show(message):
                    return
            except SshgridError as error:
                await self._stream.send(failure(error))

    def _authorize(self, message: Message, watched: JobId | None = None) -> None:
        """Raise NoSuchJob or NotAllowed unless this user may ask this. `watched`: the job that `message` concerns."""
        if not isinstance(message, Request):
            return  # `_answer` refuses it
        jobs = access.requested_jobs(message) or (() if watched is None else (watched,))
        owners: list[str | None] = [None]
        if jobs and not access.sees_all_jobs(self._user):
            owners = [self._grid.job_queries.owner(job) for job in jobs]
        for number, owner in enumerate(owners):
            match access.authorize(self._user, message, owner):
                case access.Hidden():
                    raise no_such_job(job_text(jobs[number]))
                case access.Denied(why):
                    audit.warning("%s was refused: %s", self._user.name, type(message).__name__)
                    raise NotAllowed(why)

    # --- requests with one reply

    async def _answer(self, message: Message, payload: bytes) -> None:
        if isinstance(message, PutBlob):
            self._uploads.take(message, payload)
        elif isinstance(message, Input | Resize):
            return  # for an interactive run that has just ended
        elif isinstance(message, Question):
            self._grid.spool.blobs.publish()  # the files that were uploaded before
            await self._stream.send(await self._reply(message))
        else:
            raise UsageError(f"{type(message).__name__} is not a request")

    async def _reply(self, message: Question) -> Reply:  # noqa: C901 - one match holds every request
        grid = self._grid
        if isinstance(message, Submit | Diagnose | Execute | Explain | Nodes | CheckNodes | Toolchains):
            await self._process.reload_if_changed()
        match message:
            case MissingBlobs(sha256):
                return MissingBlobsReply(self._uploads.missing(sha256))
            case TakeFile():
                return TakeFileReply(await grid.local_files.take(message))
            case Submit():
                return await self._submit(message)
            case Cancel():
                return Done(await self._cancel(message))
            case Jobs():
                return JobsReply(tuple(grid.job_queries.select(message, access.visible_owner(self._user))))
            case Info(job):
                return JobsReply((grid.job_queries.info(job),))
            case Remove(jobs):
                return Done(await grid.remove(jobs))
            case Hold(jobs, release):
                return Done(await grid.hold(jobs, release))
            case Nodes():
                return NodesReply(tuple(grid.node_queries.select(message)))
            case CheckNodes(selector):
                return NodesReply(tuple(await grid.node_queries.check(selector)))
            case Diagnose(selector):
                return DiagnoseReply(await grid.node_queries.diagnose(selector))
            case Execute():
                return await grid.node_queries.execute(message)
            case Explain(submission):
                self._uploads.check(submission)
                return await grid.explain(submission)
            case Toolchains(selector):
                return ToolchainsReply(grid.node_queries.toolchains(selector))
            case Status():
                return self._status()
            case Clients():
                name = access.visible_owner(self._user)
                return ClientsReply(tuple(line for line in self._process.clients.lines() if name in ("", line.user)))
            case Reload():
                return await self._reload()
            case Backup(path):
                return self._back_up(Path(path))
            case Stop(drain):
                audit.info("%s stops the master", self._user.name)
                self._process.leave(drain)
                return Done()
            case ProgressOf(job):
                return grid.job_queries.progress(job)
            case Tasks(job, states):
                return TasksReply(grid.job_queries.tasks(job, states))
            case Retry(jobs, failed):
                return Done(await grid.retry(jobs, failed))
            case (
                Users() | AddUser() | RemoveUser() | DisableUser() | SetPassword() | AddKey() | RemoveKey() | SetCaps()
            ):
                return await self._manage_accounts(message)
            case _:
                assert_never(message)

    async def _submit(self, message: Submit) -> Accepted:
        self._uploads.check(message.submission)
        name = self._user.name
        job = await self._grid.submit(message.submission, message.key, name)
        self._client.submitted(job)
        self._uploads.claim()
        audit.info("%s submitted job %d: %s", name, job, ascii(message.submission.program.entry))
        return Accepted(job)

    async def _cancel(self, message: Cancel) -> int:
        count = await self._grid.cancel(message)
        if count:
            ids = ",".join(map(str, message.jobs[:20])) + (",..." if len(message.jobs) > 20 else "")
            audit.info("%s sent %s to job %s", self._user.name, message.signal, ids)
        return count

    async def _manage_accounts(self, message: UsersQuestion) -> Reply:
        reply = await self._grid.accounts.answer(message)
        if not isinstance(message, Users):
            audit.info("%s: %s %s", self._user.name, type(message).__name__, message.name)
        return reply

    def _status(self) -> StatusReply:
        """The status of the whole grid; for a user without the paths of the host and the jobs of other users."""
        status = self._process.status()
        if access.sees_all_jobs(self._user):
            return status
        return msgspec.structs.replace(
            status,
            socket="",
            state_dir="",
            inventory="",
            inventory_error="the inventory has errors" if status.inventory_error else "",
            jobs_by_state=self._grid.job_queries.counts(self._user.name),
        )

    def _back_up(self, path: Path) -> Reply:
        if not path.is_absolute():  # the working directory of the client is not known here
            raise UsageError(f"{path}: not an absolute path")
        self._grid.back_up(path)
        return Done()

    async def _reload(self) -> Reply:
        await self._process.reload()
        if self._process.inventory_error:
            return Failure("inventory", self._process.inventory_error, "sshgrid inventory check")
        return Done(len(self._grid.node_queries.select(Nodes())))

    # --- watching

    async def _show(self, request: Watch | WatchSweep | Logs) -> bool:
        """Send events until the job has ended; False when the client has left before."""
        async with self._grid.job_queries.watch(request) as events:
            showing = asyncio.create_task(self._send_events(events))
            reading = asyncio.create_task(self._read_while_watching(request.job))
            try:
                await asyncio.wait({showing, reading}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done() and reading.result():
                    await asyncio.wait({showing})
                ended = showing.done()
            finally:
                for task in (showing, reading):
                    task.cancel()
                await asyncio.gather(showing, reading, return_exceptions=True)
        if ended:
            with contextlib.suppress(ConnectionError):  # the client has left while an event was sent
                showing.result()
                return True
        if isinstance(request, Watch) and request.on_disconnect is OnDisconnect.CANCEL:
            await self._grid.cancel(Cancel((request.job,), "TERM"), "lost client")
        return False

    async def _send_events(self, events: AsyncIterator[tuple[Event, bytes]]) -> None:
        async for event, payload in events:
            await self._stream.send_soon(event, payload)
        await self._stream.flush()

    async def _read_while_watching(self, job: JobId) -> bool:
        """Read what the client sends. False: it has left. True: its next request has arrived, which has to wait."""
        with contextlib.suppress(ConnectionError):
            while found := await self._stream.next():
                try:
                    if not await self._is_for_watched(job, *found):
                        self._stream.put_back(*found)
                        return True
                except SshgridError as error:
                    await self._stream.send(failure(error))
        return False

    async def _is_for_watched(self, job: JobId, message: Message, payload: bytes) -> bool:
        """Act on a message that concerns the watched job; False when `message` is another request."""
        if isinstance(message, Cancel | Input | Resize):
            self._authorize(message, job)
        match message:
            case Cancel():
                await self._cancel(message)
            case Input():
                await self._grid.send_input(job, payload)
            case Resize(columns, rows):
                await self._grid.resize(job, columns, rows)
            case _:
                return False
        return True
