"""A node seen through one SSH connection: first contact, upload, start, look, end, and a load sample a second.

Four channels at most, never one a job: a control shell that answers framed questions, a starter shell that says when
runs begin and end, the sampler, and SFTP. The verbs are those of `remote/node.sh`. All that goes wrong is raised as a
HostError; after one the connection is of no use and is ended. Refuses to judge programs: it brings what the node says.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import asyncssh

from sshgrid.dial import Dialing, blame, blame_in_use, dial, end
from sshgrid.errors import Dropped, HostError, NodeUnfit
from sshgrid.model import Facts, Node, Noun, Sample

log = logging.getLogger(__name__)

GREETING_SECONDS = 15
ANSWER_SECONDS = 30
CLEAN_SECONDS = 600  # a run may have made a million files
PIECE_BYTES = 1024 * 1024
_READ = 256 * 1024
_SAFE_PATH = re.compile(r"[A-Za-z0-9._/@:+,-]+")
_LEARN = b'umask 077\n. "$LIB"\n'
# Some login files read one line of standard input: let it be this one.
_PADDING = b"# " + b"." * 60 + b"\n"


def _remote(name: str) -> bytes:
    return (resources.files("sshgrid") / "remote" / name).read_bytes()


_LIBRARY = _remote("node.sh")
_CONTACT = _remote("contact.sh")
LIBRARY_NAME = f"node-{hashlib.sha256(_LIBRARY).hexdigest()[:12]}.sh"


class Found(Noun, frozen=True):
    """First contact: the facts, and what is known of tools."""

    facts: Facts
    tools: Mapping[str, str]  # name -> absolute path
    signatures: Mapping[str, str]  # absolute path -> size, time and inode: changes when the tool changes
    proofs: tuple[str, ...]  # lines that `prove` has written
    path: str  # PATH for runs


class Started(Noun, frozen=True):
    """The starter's answer: "claimed" | "already" | "late" | "missing" | "unfit", and its words."""

    word: str
    rest: str = ""


class RunRecord(Noun, frozen=True):
    """The target of a run's rc link."""

    code: int
    stage: str  # what ended: "layout" or "start" (nothing of the user's had begun), "build", "run"
    began_uptime: float
    ended_uptime: float
    cpu_seconds: float | None
    peak_memory_bytes: int | None


class RunLook(Noun, frozen=True):
    """What one look at a run folder shows."""

    present: bool = False
    begun: bool = False  # its wrapper is or was there
    alive: bool = True  # False: the folder is there, the wrapper is not
    compiled: bool = False
    running: bool = False  # the program itself, not its build
    why: str = ""
    record: RunRecord | None = None
    sizes: Mapping[str, int] = {}  # "out", "err", "build.log"


# --- reading what the scripts print -------------------------------------------------------------------------------


def parse_contact(node: str, output: bytes) -> Found:
    """Raises NodeUnfit when the node says that it cannot work."""
    single: dict[str, str] = {}
    tools: dict[str, str] = {}
    signatures: dict[str, str] = {}
    proofs: list[str] = []
    helpers: set[str] = set()
    for line in output.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(" ")
        match key:
            case "tool":
                name, _, path = value.partition(" ")
                tools[name] = path
            case "file":
                fields = value.split(maxsplit=9)
                if len(fields) == 10:
                    signatures[fields[9]] = " ".join((fields[0], *fields[4:9]))
            case "proof":
                proofs.append(value)
            case "helper":
                helpers.add(value)
            case "unfit":
                raise NodeUnfit(node, value)
            case _:
                single[key] = value
    try:
        facts = Facts(
            system=single["system"],
            architecture=single["architecture"],
            libc=single["libc"],
            cores=max(1, int(single["cores"])),
            memory_bytes=int(single["memory"]),
            boot_id=single["boot"],
            uid=int(single["uid"]),
            workdir=single["workdir"],
            isolation=single["isolation"],
            helpers=frozenset(helpers),
            uptime_seconds=float(single["uptime"]),
        )
    except (KeyError, ValueError) as error:
        raise NodeUnfit(node, f"first contact gave no usable answer ({error})") from error
    missing = sorted({"setsid", "awk"} - helpers)
    if missing:
        raise NodeUnfit(node, f"it lacks {' and '.join(missing)}", "install util-linux and an awk there")
    return Found(facts, tools, signatures, tuple(proofs), single["path"])


_LISTED = re.compile(rb"^\S+\s+\d+\s+\d+\s+\d+\s+(\d+)\s+.*?\s([0-9a-f]+-\d+\.\d+)/([a-z.]+)(?: -> (.*))?$")


def parse_poll(output: bytes, runs: Sequence[str]) -> dict[str, RunLook]:
    """`ls -ln` of the run folders, then the wrappers that are gone."""
    files: dict[str, dict[str, tuple[int, str]]] = {run: {} for run in runs}
    dead: set[str] = set()
    for line in output.splitlines():
        word, _, rest = line.decode("utf-8", "replace").partition(" ")
        run, _, text = rest.partition(" ")
        if word in ("dead", "gone"):
            dead.add(run)
        elif word == "record" and run in files:
            files[run]["rc"] = (0, text)
        elif (match := _LISTED.match(line)) and (run := match[2].decode()) in files:
            files[run][match[3].decode()] = (int(match[1]), (match[4] or b"").decode("utf-8", "replace"))
    return {run: _look(found, run not in dead) for run, found in files.items()}


def _look(found: Mapping[str, tuple[int, str]], alive: bool) -> RunLook:
    return RunLook(
        present=bool(found),
        begun="pid" in found,
        alive=alive,
        compiled="compiled" in found,
        running="running" in found,
        why=found["why"][1] if "why" in found else "",
        record=parse_record(found["rc"][1]) if "rc" in found else None,
        sizes={name: found[name][0] for name in ("out", "err", "build.log") if name in found},
    )


def parse_record(text: str) -> RunRecord | None:
    """`rc=0,stage=run,began=1,ended=2,cpu=0m0.01s+0m0.00s,peak=`; None when it is not one."""
    fields = dict(part.split("=", 1) for part in text.strip().split(",") if "=" in part)
    try:
        return RunRecord(
            code=int(fields["rc"]),
            stage=fields["stage"],
            began_uptime=float(fields["began"]),
            ended_uptime=float(fields["ended"]),
            cpu_seconds=_cpu_seconds(fields.get("cpu", "")),
            peak_memory_bytes=int(fields["peak"]) if fields.get("peak") else None,
        )
    except (KeyError, ValueError):
        return None


def _cpu_seconds(text: str) -> float | None:
    """What the shell's `times` prints: minutes and seconds of user and system time."""
    parts = re.findall(r"(\d+)m(\d+(?:\.\d+)?)s", text)
    return sum(int(minutes) * 60 + float(seconds) for minutes, seconds in parts) if parts else None


class LoadMeter:
    """Two lines of the sampler make a Sample: CPU use is a difference."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._last: tuple[float, float] | None = None

    def read(self, line: bytes, at: float) -> Sample | None:
        try:
            uptime, load, busy, idle, free = (float(field) for field in line.split())
        except ValueError:
            return None
        cores = self._busy_cores(busy, idle)
        return Sample(at, uptime, cores, load, int(free) * 1024)

    def _busy_cores(self, busy: float, idle: float) -> float | None:
        before, self._last = self._last, (busy, idle)
        if before is None:
            return None
        worked, rested = busy - before[0], idle - before[1]
        if worked < 0 or rested < 0 or worked + rested <= 0:
            return None
        return self._cores * worked / (worked + rested)


# --- shells over channels -----------------------------------------------------------------------------------------


class _Shell:
    """A /bin/sh on the node, fed through its standard input: byte-exact under every login shell."""

    def __init__(self, node: Node, process: asyncssh.SSHClientProcess[bytes], nonce: bytes) -> None:
        self._node = node
        self._process = process
        self._nonce = nonce
        self._turn = asyncio.Lock()
        self._asked = 0

    @classmethod
    async def open(cls, node: Node, connection: asyncssh.SSHClientConnection) -> _Shell:
        """Raises NodeUnfit when what logs in there does not run commands."""
        nonce = secrets.token_hex(8).encode()
        process = await _create(connection, "exec /bin/sh")
        shell = cls(node, process, nonce)
        shell.write(_PADDING + b"printf '\\n%s\\n' " + nonce + b"\n")
        await shell._skip_greeting()
        return shell

    def write(self, text: bytes) -> None:
        self._process.stdin.write(text)

    async def _skip_greeting(self) -> None:
        """What login files print comes before the nonce; without the nonce nothing of ours ran, whatever the status."""
        junk = b""
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                while line := await self._process.stdout.readline():
                    if line.strip() == self._nonce:
                        return
                    junk = junk or line.strip()
        except TimeoutError as error:
            raise NodeUnfit(self._node.name, f"login takes longer than {GREETING_SECONDS} s") from error
        words = junk[:80].decode("utf-8", "replace")
        raise NodeUnfit(
            self._node.name,
            "its login shell does not run commands" + (f" (first line was {words!r})" if words else ""),
            "give the account an ordinary shell, and let its start-up files neither exit nor replace the shell",
        )

    async def ask(self, command: bytes, seconds: float = ANSWER_SECONDS) -> tuple[int, bytes]:
        """(status, output) of a command. Raises Dropped when nothing comes for so long, or the connection ends."""
        async with self._turn:
            self._asked += 1
            mark = self._nonce + b"-%d" % self._asked
            # In braces: a shell that reads half a question and then the end of its input runs none of it.
            question = (
                b"{ printf '\\n%s\\n' " + mark + b"\n" + command + b"\n}\nprintf '\\n%s %s\\n' " + mark + b" $?\n"
            )
            try:
                async with asyncio.timeout(seconds) as limit:
                    self.write(question)
                    return await self._answer(mark, limit, seconds)
            except TimeoutError as error:
                raise Dropped(self._node.name, f"no answer for {seconds:g} s") from error

    async def _answer(self, mark: bytes, limit: asyncio.Timeout, seconds: float) -> tuple[int, bytes]:
        """What comes between the mark and the mark with the status. Who asked before may have left without theirs."""
        answer = bytearray()
        begun = False
        while piece := await self._process.stdout.read(_READ):
            limit.reschedule(asyncio.get_running_loop().time() + seconds)
            answer += piece
            if not begun and (place := answer.find(b"\n" + mark + b"\n")) >= 0:
                begun = True
                del answer[: place + len(mark) + 2]
            if begun and answer.endswith(b"\n"):
                start = answer.rfind(b"\n", max(0, len(answer) - 64), len(answer) - 1)
                last = bytes(answer[start + 1 :]).split()
                if start >= 0 and len(last) == 2 and last[0] == mark:
                    return int(last[1]), bytes(answer[:start])
        raise Dropped(self._node.name, "the connection ended")

    async def lines(self) -> AsyncIterator[bytes]:
        """Every further line, for a shell that is no longer asked. Ends with the connection."""
        while line := await self._process.stdout.readline():
            yield line


class Talk:
    """The two directions of an interactive run."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process
        self.stdout = _pieces(process.stdout)
        self.stderr = _pieces(process.stderr)

    @classmethod
    async def begin(cls, process: asyncssh.SSHClientProcess[bytes], nonce: bytes) -> Talk:
        """What login files print comes before the nonce and is not the program's."""
        while line := await process.stdout.readline():
            if line.strip() == nonce:
                break
        return cls(process)

    async def type(self, piece: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, asyncssh.Error):  # the program no longer reads: that is its right
            self._process.stdin.write(piece)
            await self._process.stdin.drain()

    def end_input(self) -> None:
        self._process.stdin.write_eof()

    def resize(self, columns: int, rows: int) -> None:
        self._process.change_terminal_size(columns, rows)


async def _pieces(reader: asyncssh.SSHReader[bytes]) -> AsyncIterator[bytes]:
    while piece := await reader.read(_READ):
        yield piece


async def _create(connection: asyncssh.SSHClientConnection, command: str) -> asyncssh.SSHClientProcess[bytes]:
    return await connection.create_process(command, encoding=None, stderr=asyncssh.DEVNULL)


# --- the node -----------------------------------------------------------------------------------------------------


class Link:
    """One connection to one node. Made by `Link.open`; ended by `close`, or by itself, which `lost` tells."""

    def __init__(self, node: Node, connection: asyncssh.SSHClientConnection, control: _Shell, found: Found) -> None:
        self.node = node
        self.found = found
        self.facts = found.facts
        self.lost: asyncio.Future[HostError] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._control = control
        self._starter: _Shell | None = None
        self._answers: dict[str, asyncio.Future[Started]] = {}
        self._bells: dict[str, asyncio.Event] = {}
        self._starting = asyncio.Lock()
        self._sftp: asyncssh.SFTPClient | None = None
        self._has_sftp = True
        self._uploads = asyncio.Semaphore(1)
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, node: Node, how: Dialing, tools: Iterable[str], on_sample: Callable[[Sample], None]) -> Link:
        """Dial, first contact, and the long-lived channels. Raises a HostError; nothing is left open then."""
        connection = await dial(node, how)
        try:
            with blame(node):
                control = await _Shell.open(node, connection)
                _, output = await control.ask(_contact_script(node, tools))
                found = parse_contact(node.name, output)
                link = cls(node, connection, control, found)
                await link._prepare(on_sample)
                return link
        except BaseException:
            await end(connection)
            raise

    async def _prepare(self, on_sample: Callable[[Sample], None]) -> None:
        """The control shell learns the verbs; the starter and the sampler begin."""
        status, output = await self._control.ask(self._variables() + _install_script())
        if status != 0:
            raise NodeUnfit(
                self.node.name, f"cannot write in {self.facts.workdir}: {output[-80:].decode(errors='replace')}"
            )
        starter, sampler = await asyncio.gather(
            _Shell.open(self.node, self._connection), _Shell.open(self.node, self._connection)
        )
        starter.write(self._variables() + _LEARN + b"exec 9>&1 2>/dev/null\n")
        sampler.write(self._variables() + _LEARN + b"sampler\n")
        self._starter = starter
        self._spawn(self._hear(starter))
        self._spawn(self._feel(sampler, on_sample))

    def _variables(self) -> bytes:
        facts = self.facts
        values = {
            "W": facts.workdir,
            "LIB": f"{facts.workdir}/bin/{LIBRARY_NAME}",
            "BOOT": facts.boot_id,
            "PATH": self.found.path,
            "ISOLATION": facts.isolation,
            "SETSID_FORK": str(int("setsid-fork" in facts.helpers)),
            "SHA256SUM": str(int("sha256sum" in facts.helpers)),
        }
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()).encode()

    # --- what the node says by itself

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hear(self, starter: _Shell) -> None:
        """The starter's lines: answers to `start`, and bells of runs."""
        with self._until_lost("the connection ended"):
            async for line in starter.lines():
                word, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
                run, _, rest = rest.partition(" ")
                if word in ("running", "end"):
                    self.bell(run).set()
                elif (answer := self._answers.pop(run, None)) and not answer.done():
                    answer.set_result(Started(word, rest))

    async def _feel(self, sampler: _Shell, on_sample: Callable[[Sample], None]) -> None:
        meter = LoadMeter(self.facts.cores)
        with self._until_lost("the connection ended"):
            async for line in sampler.lines():
                if sample := meter.read(line, time.time()):
                    on_sample(sample)

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
        for bell in self._bells.values():
            bell.set()

    def bell(self, run: str) -> asyncio.Event:
        """Set when the node says that something of the run has changed, and when the connection is lost."""
        return self._bells.setdefault(run, asyncio.Event())

    def forget(self, run: str) -> None:
        self._bells.pop(run, None)

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
        stdin: str,
        objects: Sequence[str],
        verb: str = "start",
    ) -> Started:
        """Start a run, at most once. A lost answer means: unknown; look at the run folder.

        `stdin` and `objects` are digests; `stdin` is "-" when there is none, `objects` count only without the build.
        The verb "prepare" leaves the launching to `converse`.
        """
        if self._starter is None or self.lost.done():
            raise Dropped(self.node.name, "the connection ended")
        answer: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._answers[run] = answer
        words = shlex.join((verb, run, str(int(not_after_uptime)), build, stdin, *objects)).encode()
        mark = b"JOB-" + secrets.token_hex(8).encode()
        try:
            with blame_in_use(self.node):
                self._starter.write(b"{ " + words + b" <<'" + mark + b"'\n" + job + mark + b"\n}\n")
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError as error:
            lost = Dropped(self.node.name, f"no answer to a start for {ANSWER_SECONDS} s")
            self._lose(lost)
            raise lost from error
        finally:
            self._answers.pop(run, None)

    async def poll(self, runs: Sequence[str]) -> dict[str, RunLook]:
        return parse_poll(await self._ask("poll", *runs), runs)

    async def forestall(self, run: str) -> None:
        """No wrapper has come for this claimed run; from now on none can begin."""
        await self._ask("forestall", run)

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

    async def prove(self, name: str, line: str) -> None:
        await self._ask("eval", f"printf '%s\\n' {shlex.quote(line)} | prove {shlex.quote(name)}")

    # --- conversations

    @contextlib.asynccontextmanager
    async def converse(self, run: str, *, terminal: bool) -> AsyncIterator[Talk]:
        """Run a claimed interactive run on a channel of its own, on a pseudo-terminal if asked. Raises HostError."""
        nonce = secrets.token_hex(8)
        library = f"{self.facts.workdir}/bin/{LIBRARY_NAME}"
        words = ("exec", "/bin/sh", library, "converse", self.facts.workdir, run, self.facts.boot_id, nonce)
        self._check_safe(*words)
        with blame_in_use(self.node):
            process = await self._connection.create_process(
                " ".join(words), encoding=None, term_type="xterm-256color" if terminal else None, term_size=(80, 24)
            )
            try:
                yield await Talk.begin(process, nonce.encode())
            finally:
                process.close()
        if self.lost.done():
            raise Dropped(self.node.name, self.lost.result().reason)

    # --- uploads

    async def lacking(self, objects: Sequence[str]) -> list[str]:
        return (await self._ask("have", *objects)).decode().split() if objects else []

    async def upload(self, sha256: str, source: Path) -> int:
        """Send one file into the node's objects; bytes sent. It counts only once size and digest were checked there."""
        part = f"{sha256[:16]}.{secrets.token_hex(4)}"
        target = f"{self.facts.workdir}/objects/{part}"
        size = source.stat().st_size
        async with self._uploads:
            try:
                with blame_in_use(self.node):
                    if not await self._put(source, target):
                        await self._pour(source, target)
            except NodeUnfit:
                await self._ask("drop", part)
                raise
        verdict = (await self._ask("keep", part, sha256, str(size), seconds=600)).decode(errors="replace").strip()
        if verdict != "kept":
            raise NodeUnfit(self.node.name, f"an upload arrived {verdict or 'nowhere'} (disk full?)")
        return size

    async def _put(self, source: Path, target: str) -> bool:
        """By SFTP; False when the node has none that works."""
        if not self._has_sftp:
            return False
        try:
            if self._sftp is None:
                self._sftp = await self._connection.start_sftp_client()
            await self._sftp.put(str(source), target)
        except asyncssh.SFTPFailure as error:
            raise NodeUnfit(self.node.name, f"upload failed: {error.reason} (disk full?)") from error
        except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
            if self.lost.done() or isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
                self._sftp = None
            log.info("%s: no SFTP (%s), using cat", self.node.name, error)
            self._has_sftp = False
            return False
        return True

    async def _pour(self, source: Path, target: str) -> None:
        """Through a channel to `cat`, for nodes without SFTP."""
        self._check_safe(target)
        process = await _create(self._connection, f"exec /bin/sh -c 'umask 077; cat >{target}'")
        # Who no longer reads has no space left: `keep` will say so.
        with source.open("rb") as file, contextlib.suppress(BrokenPipeError):
            while piece := file.read(_READ):
                process.stdin.write(piece)
                await process.stdin.drain()
            process.stdin.write_eof()
        await process.wait()

    def _check_safe(self, *words: str) -> None:
        """What is part of a command line goes through login shells that quote in their own ways. Raises NodeUnfit."""
        if not all(map(_SAFE_PATH.fullmatch, words)):
            raise NodeUnfit(self.node.name, f"the working folder {self.facts.workdir} has unusual characters")

    # --- the end

    async def close(self, error: HostError | None = None) -> None:
        self._lose(error or Dropped(self.node.name, "closed"))
        for task in list(self._tasks):
            task.cancel()
        await end(self._connection)


def _contact_script(node: Node, tools: Iterable[str]) -> bytes:
    words = shlex.join((node.workdir.replace("{name}", node.name), LIBRARY_NAME, *tools)).encode()
    return b"set -- " + words + b"\n" + _CONTACT


def _install_script() -> bytes:
    """The verb library becomes a file of the working folder, as runs outlive the shell that started them."""
    mark = b"LIBRARY-" + secrets.token_hex(8).encode()
    size = str(len(_LIBRARY)).encode()
    # Its size is looked at, too: after a power cut a file may be there and empty.
    return (
        b'if [ "$(wc -c <"$LIB")" -eq '
        + size
        + b' ] || { cat >"$LIB.$$" && mv -f "$LIB.$$" "$LIB"; } <<\''
        + mark
        + b"'\n"
        + _LIBRARY
        + mark
        + b"\nthen\n"
        + _LEARN
        + b"else\nfalse\nfi\n"
    )
