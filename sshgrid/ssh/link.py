"""A node seen through one SSH connection: first contact, start, look, end, and a load sample a second.

Four channels at most, never one a job: a control shell that answers framed questions, a starter shell that says when
runs begin and end, the sampler, and SFTP (see cargo). The verbs are those of `remote/node.sh`. All that goes wrong is a
HostError; after one the connection is of no use and is ended. Refuses to judge programs: it brings what the node says.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from importlib import resources
from typing import BinaryIO

import asyncssh

from sshgrid.errors import Dropped, HostError, NodeUnfit
from sshgrid.model import Node, Sample
from sshgrid.ssh.channels import ANSWER_SECONDS, CommandOutput, Conversation, RemoteShell, check_words, early_end
from sshgrid.ssh.connect import Dialing, blame_in_use, dial, end
from sshgrid.ssh.parsers import (
    BatchLook,
    Found,
    LoadMeter,
    RunLook,
    Started,
    parse_batch,
    parse_contact,
    parse_poll,
    parse_sizes,
)
from sshgrid.ssh.transfer import Transfer

log = logging.getLogger(__name__)

CLEAN_SECONDS = 600  # a run may have made a million files
DOCTOR_SECONDS = 60
ASIDES = 2  # channels for people's questions; sshd allows ten in all
PIECE_BYTES = 1024 * 1024
LOOK_RECORDS = 512  # of a batch in one look
SMALL_BLOCKS = 8  # of 512 bytes; outputs of tasks that are no larger come with the look
_LEARN = b'umask 077\n. "$LIB"\n'
_LIBRARIES = {b"$LIB": "node.sh", b"${LIB%/*}/batch${LIB##*/node}": "batch.sh"}
_LEARN_BATCHES = b"".join(b'. "%s"\n' % path for path in list(_LIBRARIES)[1:])


def _remote(name: str) -> bytes:
    return (resources.files("sshgrid") / "remote" / name).read_bytes()


_LIBRARY = {path: _remote(name) for path, name in _LIBRARIES.items()}
_CONTACT = _remote("contact.sh")
_DOCTOR = _remote("doctor.sh")
_EXECUTE = _remote("execute.sh")
_SWEEP = _remote("sweep.sh")
_DIGEST = hashlib.sha256(b"".join(_LIBRARY.values())).hexdigest()[:12]
LIBRARY_NAME = f"node-{_DIGEST}.sh"


class Link:
    """One connection to one node. Made by `Link.open`; ended by `close`, or by itself, which `lost` tells."""

    def __init__(
        self, node: Node, how: Dialing, connection: asyncssh.SSHClientConnection, control: RemoteShell, found: Found
    ) -> None:
        self.node = node
        self.found = found
        self.facts = found.facts
        self.lost: asyncio.Future[HostError] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._control = control
        self._starter: RemoteShell | None = None
        self._answers: dict[str, asyncio.Future[Started]] = {}
        self._wakeups: dict[str, asyncio.Event] = {}
        self._starting = asyncio.Lock()
        self._asides = asyncio.Semaphore(ASIDES)
        self.cargo = Transfer(self, how, connection, self._ask, self._asides)
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, node: Node, how: Dialing, tools: Iterable[str], on_sample: Callable[[Sample], None]) -> Link:
        """Dial, first contact, and the long-lived channels. Raises a HostError; nothing is left open then."""
        connection = await dial(node, how)
        try:
            with blame_in_use(node):
                # All at once: a shell takes its time to start.
                control, starter, sampler = await asyncio.gather(
                    RemoteShell.open(node, connection),
                    RemoteShell.open(node, connection),
                    RemoteShell.open(node, connection),
                )
                _, output = await control.ask(contact_script(node, tools))
                found = parse_contact(node.name, output)
                link = cls(node, how, connection, control, found)
                await link._prepare(starter, sampler, on_sample)
                return link
        except BaseException:
            await end(connection)
            raise

    async def _prepare(self, starter: RemoteShell, sampler: RemoteShell, on_sample: Callable[[Sample], None]) -> None:
        """The control shell learns the verbs; the starter and the sampler begin."""
        status, output = await self._control.ask(self._variables() + _install_script())
        if status != 0:
            raise NodeUnfit(
                self.node.name, f"cannot write in {self.facts.workdir}: {output[-80:].decode(errors='replace')}"
            )
        starter.write(self._variables() + _LEARN + _LEARN_BATCHES + b"exec 9>&1 2>/dev/null\n")
        sampler.write(self._variables() + _LEARN + b"sampler\n")
        self._starter = starter
        self._spawn(self._hear(starter))
        self._spawn(self._feel(sampler, on_sample))

    def _variables(self) -> bytes:
        facts = self.facts
        values = {
            "W": facts.workdir,
            "LIB": self.library,
            "BOOT": facts.boot_id,
            "PATH": self.found.path,
            "ISOLATION": facts.isolation,
            "SETSID_FORK": str(int("setsid-fork" in facts.helpers)),
            "SHA256SUM": str(int("sha256sum" in facts.helpers)),
        }
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()).encode()

    @property
    def library(self) -> str:
        """Where the verbs are, on the node."""
        return f"{self.facts.workdir}/bin/{LIBRARY_NAME}"

    # --- what the node says by itself

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hear(self, starter: RemoteShell) -> None:
        """The starter's lines: answers to `start`, and bells of runs."""
        with self._until_lost("the connection ended"):
            async for line in starter.lines():
                word, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
                run, _, rest = rest.partition(" ")
                if word in ("running", "end"):
                    self.wakeup(run).set()
                elif (answer := self._answers.pop(run, None)) and not answer.done():
                    answer.set_result(Started(word, rest))

    async def _feel(self, sampler: RemoteShell, on_sample: Callable[[Sample], None]) -> None:
        meter = LoadMeter(self.facts.cores)

        def hear(line: bytes) -> None:
            if sample := meter.read(line, time.time()):
                on_sample(sample)

        with self._until_lost("the connection ended"):
            await sampler.hear(hear)

    @contextlib.contextmanager
    def _until_lost(self, reason: str) -> Iterator[None]:
        """However a channel ends that should not, the connection is over."""
        try:
            with blame_in_use(self.node):
                yield
            self._lose(Dropped(self.node.name, reason))
        except HostError as error:
            self._lose(error)

    def _lose(self, error: HostError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Dropped(self.node.name, error.reason))
        self._answers.clear()
        for wakeup in self._wakeups.values():
            wakeup.set()

    def wakeup(self, run: str) -> asyncio.Event:
        """Set when the node says that something of the run has changed, and when the connection is lost."""
        return self._wakeups.setdefault(run, asyncio.Event())

    def forget(self, run: str) -> None:
        self._wakeups.pop(run, None)

    # --- verbs

    async def _ask(self, verb: str, *words: str, seconds: float = ANSWER_SECONDS) -> bytes:
        if self.lost.done():
            raise Dropped(self.node.name, self.lost.result().reason)
        try:
            with blame_in_use(self.node):
                _, output = await self._control.ask(shlex.join((verb, *words)).encode(), seconds)
                return output
        except HostError as error:
            self._lose(error)
            raise

    async def start(
        self,
        run: str,
        not_after_uptime: float,
        job: bytes,
        build: str,
        needed: Sequence[str],
        objects: Sequence[str],
        verb: str = "start",
    ) -> Started:
        """Start a run, at most once. A lost answer means: unknown; look at the run folder.

        `needed` and `objects` are digests; `objects` count only without the build.
        The verb "prepare" leaves the launching to `converse`.
        """
        words = (verb, run, str(int(not_after_uptime)), build, " ".join(needed) or "-", *objects)
        return await self._tell_starter(run, words, job)

    async def more(
        self, batch: str, part: int, not_after_uptime: float, job: bytes, tasks: int, needed: Sequence[str]
    ) -> Started:
        """So many more tasks for a batch under way, as its job.PART.sh, at most once. `already`: it takes no more."""
        words = ("more", batch, str(int(not_after_uptime)), " ".join(needed) or "-", str(part), str(tasks))
        return await self._tell_starter(f"{batch}.{part}", words, job)

    async def _tell_starter(self, name: str, words: Sequence[str], job: bytes) -> Started:
        """What it answers under this name. Raises Dropped when it does not."""
        if self._starter is None or self.lost.done():
            raise Dropped(self.node.name, "the connection ended")
        answer: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._answers[name] = answer
        mark = b"JOB-" + secrets.token_hex(8).encode()
        try:
            with blame_in_use(self.node):
                self._starter.write(
                    b"{ " + shlex.join(words).encode() + b" <<'" + mark + b"'\n" + job + mark + b"\n}\n"
                )
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError as error:
            lost = Dropped(self.node.name, f"no answer to a start for {ANSWER_SECONDS} s")
            self._lose(lost)
            raise lost from error
        finally:
            self._answers.pop(name, None)

    async def poll(self, runs: Sequence[str]) -> dict[str, RunLook]:
        return parse_poll(await self._ask("poll", *runs), runs)

    async def glance(self, run: str, offset: int, count: int) -> tuple[RunLook, bytes]:
        """`poll` of one run, and what its stdout has from `offset` on, in one round trip."""
        answer = b"\n" + await self._ask("glance", run, str(offset), str(count))
        listed, _, piece = answer.partition(b"\nout\n")
        return parse_poll(listed, [run])[run], piece

    async def look_batch(self, batch: str, seen: int) -> BatchLook:
        """What follows `seen` records in the ledger of a batch, with small outputs of what ended; or `poll`."""
        words = (batch, str(seen), str(LOOK_RECORDS), str(SMALL_BLOCKS))
        return parse_batch(await self._ask("look_batch", *words), batch)

    async def sizes(self, batch: str, files: Sequence[str]) -> dict[str, int]:
        """Bytes of these files of a batch, as far as they are there."""
        return parse_sizes(await self._ask("sizes_in", batch, *files))

    async def block_start(self, run: str) -> None:
        """No wrapper has come for this claimed run; from now on none can begin."""
        await self._ask("forestall", run)

    async def refuse_tasks(self, batch: str, tasks: Sequence[str]) -> list[str]:
        """Those of these tasks that had not begun, and now never will."""
        return (await self._ask("refuse_tasks", batch, *tasks)).decode("ascii", "replace").split()

    async def piece(self, run: str, file: str, offset: int, count: int) -> bytes:
        return await self._ask("piece", f"{run}/{file}", str(offset), str(count))

    async def signal(self, run: str, name: str) -> bool:
        return (await self._ask("signal", run, name)).strip() == b"sent"

    async def clean(self, runs: Sequence[str]) -> None:
        """No process and no file of these runs is left on the node. Raises NodeUnfit when some is."""
        left = await self._ask("clean", *runs, seconds=CLEAN_SECONDS)
        for run in runs:
            self.forget(run)
        if left.strip():
            raise NodeUnfit(self.node.name, f"cannot remove {left.decode(errors='replace').strip()}")

    async def runs(self, grid: str) -> list[str]:
        """Run folders of this grid that are there."""
        return (await self._ask("runs_of", grid)).decode("utf-8", "replace").split()

    async def renew(self, run: str, until_uptime: float) -> None:
        """The run's lease ends then, in the node's uptime."""
        await self._ask("renew", run, str(int(until_uptime)))

    async def claim(self, run: str) -> bool:
        """Take the run's place, so that it can never start; False when it is there. Raises NodeUnfit on a full disk."""
        answer = (await self._ask("claim", run)).strip()
        if answer == b"unfit":
            raise NodeUnfit(
                self.node.name, f"cannot make a run folder in {self.facts.workdir} (disk full or read-only)"
            )
        return answer == b"claimed"

    async def built(self, key: str) -> bool:
        """Is this build there? From now on it counts as used."""
        return (await self._ask("built", key)).strip() == b"yes"

    async def unpack(self, key: str, sha256: str) -> str:
        """An uploaded build of another node becomes a build here; "" or why not. The object is gone then."""
        answer = (await self._ask("unpack_build", key, sha256, seconds=CLEAN_SECONDS)).decode(errors="replace").strip()
        return "" if answer == "unpacked" else answer or "it was not unpacked"

    async def pack(self, key: str, most_bytes: int, target: BinaryIO) -> str:
        """Bring a build as an archive, on a channel of its own; "" or why not. Raises a HostError."""
        async with self._asides:
            with blame_in_use(self.node):
                shell = await RemoteShell.open(self.node, self._connection)
                try:
                    words = shlex.join(("pack_build", key, str(most_bytes // 1024))).encode()
                    shell.write(self._variables() + _LEARN + words + b"\n")
                    return await shell.fetch(2 * most_bytes, target)
                finally:
                    shell.close()

    async def prove(self, name: str, line: str) -> None:
        await self._ask("eval", f"printf '%s\\n' {shlex.quote(line)} | prove {shlex.quote(name)}")

    async def aside(
        self, script: bytes, words: Iterable[str | bytes], seconds: float, most_bytes: int
    ) -> CommandOutput:
        """A script with these words, in a shell of its own with the PATH of runs. Raises a HostError."""
        quoted = b" ".join(os.fsencode(shlex.quote(os.fsdecode(word))) for word in words)
        head = b"PATH=%s\nexport PATH\nset -- %s\n" % (shlex.quote(self.found.path).encode(), quoted)
        try:
            async with self._asides:
                with blame_in_use(self.node):
                    shell = await RemoteShell.open(self.node, self._connection)
                    try:
                        async with asyncio.timeout(seconds):
                            return await shell.run(head + script, most_bytes)
                    finally:
                        shell.close()
        except TimeoutError as error:
            raise Dropped(self.node.name, f"no answer for {seconds:g} s") from error

    async def execute(self, words: Sequence[bytes], limit_seconds: float, most_bytes: int) -> CommandOutput:
        """One command for a person; the answer is its status, and `late` when the limit ended it."""
        limit = str(max(1, math.ceil(limit_seconds)))
        return await self.aside(_EXECUTE, (limit, *words), limit_seconds + ANSWER_SECONDS, most_bytes)

    async def diagnose(self) -> bytes:
        """The facts of `remote/doctor.sh`."""
        return (await self.aside(_DOCTOR, (self.facts.workdir,), DOCTOR_SECONDS, PIECE_BYTES)).output

    @property
    def whom(self) -> str:
        """Who answers there, and by which key we know it."""
        key = self._connection.get_server_host_key()
        server = self._connection.get_extra_info("server_version") or "an SSH server"
        return f"{server}, host key {key.get_fingerprint()}" if key is not None else str(server)

    async def has_sftp(self) -> bool:
        """Whether files can be sent by SFTP, tried now."""
        try:
            with blame_in_use(self.node):
                async with self._asides:
                    client = await self._connection.start_sftp_client()
                    client.exit()
                    await client.wait_closed()
        except HostError as error:
            log.info("%s: no SFTP: %s", self.node.name, error.reason)
            return False
        return True

    async def sweep(self, days: int, most_bytes: int) -> None:
        """Free objects and builds not used for `days`, then the oldest until the rest fits. Never one in use."""
        with blame_in_use(self.node):
            shell = await RemoteShell.open(self.node, self._connection)
            words = f"W={shlex.quote(self.facts.workdir)}\nset -- {days} {most_bytes // 1024}\n".encode()
            try:
                _, output = await shell.ask(words + _SWEEP, CLEAN_SECONDS)
            finally:
                shell.close()
        log.info("%s: sweep: %s", self.node.name, output.decode("utf-8", "replace").strip())

    # --- conversations

    @contextlib.asynccontextmanager
    async def converse(self, run: str, *, terminal: bool) -> AsyncIterator[Conversation]:
        """Run a claimed interactive run on a channel of its own, on a pseudo-terminal if asked. Raises HostError."""
        nonce = secrets.token_hex(8)
        words = ("exec", "/bin/sh", self.library, "converse", self.facts.workdir, run, self.facts.boot_id, nonce)
        check_words(self.node.name, self.facts.workdir, *words)
        with blame_in_use(self.node):
            term_type = "xterm-256color" if terminal else None
            with early_end():
                process = await self._connection.create_process(
                    " ".join(words), encoding=None, term_type=term_type, term_size=(80, 24)
                )
            try:
                yield await Conversation.begin(process, nonce.encode(), terminal=terminal)
            finally:
                process.close()
        if self.lost.done():
            raise Dropped(self.node.name, self.lost.result().reason)

    # --- the end

    async def close(self, error: HostError | None = None) -> None:
        self._lose(error or Dropped(self.node.name, "closed"))
        for task in list(self._tasks):
            task.cancel()
        await end(self._connection)


def contact_script(node: Node, tools: Iterable[str]) -> bytes:
    """What a shell is asked at first contact."""
    words = shlex.join((node.workdir.replace("{name}", node.name), LIBRARY_NAME, *tools)).encode()
    return b"set -- " + words + b"\n" + _CONTACT


def _install_script() -> bytes:
    """The verb libraries become files of the working folder, as runs outlive the shell that started them."""
    steps = [_put_library(path, text) + b"then\n" for path, text in _LIBRARY.items()]
    return b"".join(b"if " + step for step in steps) + _LEARN + _LEARN_BATCHES + b"else\nfalse\nfi\n" * len(steps)


def _put_library(path: bytes, text: bytes) -> bytes:
    """Its size is looked at, too: after a power cut a file may be there and empty."""
    mark = b"LIBRARY-" + secrets.token_hex(8).encode()
    return (
        b'[ "$(wc -c <"%(path)s")" -eq %(size)d ] || { cat >"%(path)s.$$" && mv -f "%(path)s.$$" "%(path)s"; } '
        b"<<'%(mark)s'\n%(text)s%(mark)s\n"
    ) % {b"path": path, b"size": len(text), b"mark": mark, b"text": text}
