"""How a face and the master talk: JSON Lines over a byte stream, raw bytes after a line that announces them.

A line is one JSON object with a "type". When it carries `size` and is one of the payload messages (`PutBlob`, `Output`,
`TaskOutput`, `Input`), exactly `size` raw bytes follow its newline: output is never escaped or re-encoded. A connection
carries one request at a time; `Watch`, `WatchSweep` and `Logs` answer with events until `Ended`, every other request
with one reply. The client may send `Input`, `Resize`, `Cancel` while it watches. Refuses lines over MAX_LINE and
payloads over MAX_PAYLOAD.

This module is pure: it knows no socket. `Decoder` is fed bytes and gives messages.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from sshgrid.model import Fetched, JobId, NodeState, OnDisconnect, Struct, Submission, Toolchain
from sshgrid.protocol.sweep_messages import (
    SweepEvent,
    SweepProgress,
    SweepReply,
    SweepsQuestion,
    WatchSweep,
)
from sshgrid.protocol.user_messages import UsersQuestion, UsersReply

PROTOCOL = 1
MAX_PAYLOAD = 1024 * 1024


# --- what is asked ----------------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, tag="hello"):
    """First line of every connection; the master answers `Welcome` or `Failure` (code "version")."""

    version: str
    protocol: int = PROTOCOL


class PutBlob(Struct, frozen=True, tag="put-blob"):
    """A piece of a file, `size` raw bytes follow; `last` closes the file, which must then match `sha256`. No reply."""

    sha256: str
    size: int
    last: bool


class MissingBlobs(Struct, frozen=True, tag="missing-blobs"):
    """Which of these does the master lack? Answered by `Blobs`."""

    sha256: tuple[str, ...]


class TakeFile(Struct, frozen=True, tag="take-file"):
    """Keep a file of the master's own machine, which reads it by itself. The numbers, as stat(2) gives them, say which
    file is meant, as it was when the client looked. Only for the owner. Answered by `Taken`."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str, found: Any) -> TakeFile:
        """`found`: what stat(2) says of it."""
        return cls(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Submit(Struct, frozen=True, tag="submit"):
    """Accept this job; the same `key` sent twice gives the same job. Answered by `Accepted`, which means: durable."""

    submission: Submission
    key: str


class Watch(Struct, frozen=True, tag="watch"):
    """All events of a job from its beginning (or only the end of its output) until it is done."""

    job: JobId
    output: bool = True
    on_disconnect: OnDisconnect = OnDisconnect.KEEP


class Seen(Struct, frozen=True):
    """So many bytes of a stream were seen, of this attempt."""

    stream: str
    attempt: int
    size: int


class Logs(Struct, frozen=True, tag="logs"):
    """The kept output of one attempt; 0 = the newest, with `follow` each newest in turn. With `follow` until the job is
    done. Events `Output`, `Restarted`, `Ended`. `seen`: goes on behind it, whatever `tail_lines` says."""

    job: JobId
    attempt: int = 0
    follow: bool = False
    tail_lines: int | None = None
    streams: tuple[str, ...] = ("stdout", "stderr")
    seen: tuple[Seen, ...] = ()


class Cancel(Struct, frozen=True, tag="cancel"):
    """End jobs. INT, TERM and KILL cancel (INT grows to TERM after 5 s, KILL after 10); other signals are only sent."""

    jobs: tuple[JobId, ...]
    signal: str = "TERM"


class Input(Struct, frozen=True, tag="input"):
    """Bytes for the standard input of an interactive run; size 0 = end of input."""

    size: int


class Resize(Struct, frozen=True, tag="resize"):
    """The window of an interactive run on a terminal has this size now."""

    columns: int
    rows: int


class Jobs(Struct, frozen=True, tag="jobs"):
    """List jobs: by selector ("" = all) and filters."""

    selector: str = ""
    user: str = ""
    states: tuple[str, ...] = ()
    since_seconds: float | None = None
    active_only: bool = False
    limit: int = 0  # so many at most: what runs, then what waits, then what is done; 0 = all


class Info(Struct, frozen=True, tag="info"):
    """One job with its attempts, and why it waits. Answered by `JobsReply` with one job."""

    job: JobId


class Remove(Struct, frozen=True, tag="remove"):
    """Forget finished jobs and their output."""

    jobs: tuple[JobId, ...]


class Hold(Struct, frozen=True, tag="hold"):
    """Keep waiting jobs from starting; with `release` let them go."""

    jobs: tuple[JobId, ...]
    release: bool = False


class Nodes(Struct, frozen=True, tag="nodes"):
    """List nodes. Answered by `NodesReply`; with `history` each tells its last minute."""

    selector: str = ""
    history: bool = False


class CheckNodes(Struct, frozen=True, tag="check-nodes"):
    """Dial these nodes now, whatever the breaker says; `NodesReply` when each has answered or failed."""

    selector: str


class Diagnose(Struct, frozen=True, tag="diagnose"):
    """What silently breaks people on these nodes, looked for now. Answered by `DiagnoseReply`."""

    selector: str = ""


class Execute(Struct, frozen=True, tag="execute"):
    """Run a command on all of these nodes at once, its standard input empty; `ExecuteReply` when all are done."""

    selector: str
    words: tuple[bytes, ...]  # an argument list, not a shell's line
    limit_seconds: float = 60.0


class Explain(Struct, frozen=True, tag="explain"):
    """Where would this go, and why not elsewhere? Nothing is queued (`run --dry-run`)."""

    submission: Submission


class Toolchains(Struct, frozen=True, tag="toolchains"):
    """The languages, and which of these nodes have them. Answered by `ToolchainsReply`."""

    selector: str = ""


class Status(Struct, frozen=True, tag="status"):
    """Who this master is and what it holds. Answered by `StatusReply`."""


class Clients(Struct, frozen=True, tag="clients"):
    """Who is connected, or left programs behind that still run. Answered by `ClientsReply`."""


class Reload(Struct, frozen=True, tag="reload"):
    """Read the inventory now instead of at the next look. Answered by `Done` or `Failure`."""


class Backup(Struct, frozen=True, tag="backup"):
    """A whole copy of the queue to this absolute path, which must not exist, while everything goes on."""

    path: str


class Stop(Struct, frozen=True, tag="stop"):
    """Leave; with `drain` once what runs has ended. Answered by `Done`."""

    drain: bool = False


# What is answered with one reply.
Question: TypeAlias = (
    MissingBlobs
    | TakeFile
    | Submit
    | Cancel
    | Jobs
    | Info
    | Remove
    | Hold
    | Nodes
    | CheckNodes
    | Diagnose
    | Execute
    | Explain
    | Toolchains
    | Status
    | Clients
    | Reload
    | Backup
    | Stop
    | SweepsQuestion
    | UsersQuestion
)

Request: TypeAlias = Question | PutBlob | Watch | WatchSweep | Logs | Input | Resize


# --- what is answered -------------------------------------------------------------------------------------------------


class Welcome(Struct, frozen=True, tag="welcome"):
    """The answer to `Hello`."""

    version: str
    pid: int


class Failure(Struct, frozen=True, tag="failure"):
    """A refused request: the fields of an SshgridError."""

    code: str
    message: str
    hint: str = ""
    exit_status: int = 125


class Done(Struct, frozen=True, tag="done"):
    """It is so now; `count` = how many things it concerned."""

    count: int = 0


class Blobs(Struct, frozen=True, tag="blobs"):
    """Digests of files, as asked for."""

    sha256: tuple[str, ...]


class Taken(Struct, frozen=True, tag="taken"):
    """The file is kept, under this digest."""

    sha256: str


class Accepted(Struct, frozen=True, tag="accepted"):
    """The job is in the queue, durably."""

    job: JobId


class NodeReason(Struct, frozen=True):
    """What rules a node out."""

    node: str
    reason: str


class AttemptLine(Struct, frozen=True):
    """An attempt as `info` shows it."""

    number: int
    node: str
    outcome: str  # "" while it runs
    started: float
    ended: float | None
    uploaded_bytes: int
    compiled: bool | None
    cpu_seconds: float | None
    peak_memory: int | None
    toolchain: str = ""
    isolation: str = ""
    speculative: bool = False  # begun beside the attempt before it, which still ran
    why_compiled: str = ""  # why it was compiled though another node had it
    upload_left_bytes: int = 0


class JobLine(Struct, frozen=True):
    """A job as `ps` and `info` show it."""

    id: JobId
    user: str
    program: str
    name: str
    state: str  # PENDING RUNNING COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL OUT_OF_MEMORY COMPILE_ERROR DISCONNECTED
    phase: str  # uploading compiling running fetching, "" when not running
    node: str
    attempt: int
    attempts_allowed: int
    submitted: float
    started: float | None
    seconds: float
    exit_code: int | None
    signal: int | None
    reason: str
    exit_status: int | None = None  # what `run`, `attach`, `wait` of this one job exit with; None = not done
    attempts: tuple[AttemptLine, ...] = ()
    why: tuple[NodeReason, ...] = ()
    sweep: SweepProgress | None = None  # only of a sweep
    fetch: tuple[str, ...] = ()  # globs of what is brought back
    fetched: Fetched | None = None  # by the newest attempt


class JobsReply(Struct, frozen=True, tag="jobs-reply"):
    """Jobs, the oldest first."""

    jobs: tuple[JobLine, ...]


class NodeLine(Struct, frozen=True):
    """A node as `nodes` shows it."""

    name: str
    state: NodeState
    reason: str
    cpu: float | None  # busy share of all cores, 0.0 to 1.0
    load: float | None
    memory_free: int | None
    running: int
    slots: int | None
    toolchains: tuple[str, ...]
    last_seen: float | None
    next_try_seconds: float | None = None
    cores: int | None = None
    tags: tuple[str, ...] = ()
    isolation: str = ""
    cpu_minute: tuple[int, ...] = ()  # percent, a sample a second, the newest last; only when asked for


class NodesReply(Struct, frozen=True, tag="nodes-reply"):
    """Nodes, in the order of the inventory."""

    nodes: tuple[NodeLine, ...]


class Finding(Struct, frozen=True):
    """One thing that was looked at; `hint` is what mends it, or makes it better where it is ok."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


class NodeFindings(Struct, frozen=True):
    """All that was found on one node."""

    node: str
    findings: tuple[Finding, ...]


class DiagnoseReply(Struct, frozen=True, tag="diagnose-reply"):
    """Nodes, in the order of the inventory."""

    nodes: tuple[NodeFindings, ...]


class ExecuteLine(Struct, frozen=True):
    """What one node answered."""

    node: str
    status: int | None  # as a shell says it, 128+N for a signal; None = there is none, and `reason` says why
    output: int  # which of the outputs: alike ones travel once
    seconds: float
    more: bool = False  # it said more than was kept
    reason: str = ""


class ExecuteReply(Struct, frozen=True, tag="execute-reply"):
    """Every node's answer; stdout and stderr are one output, in the order in which they were written."""

    lines: tuple[ExecuteLine, ...]
    outputs: tuple[bytes, ...]


class ExplainReply(Struct, frozen=True, tag="explain-reply"):
    """`chosen` is "" when nothing can take it now; `score` is busy share after correction, lower is better."""

    chosen: str
    scores: tuple[tuple[str, float], ...]
    why: tuple[NodeReason, ...]


class ToolchainLine(Struct, frozen=True):
    """A language, and what each node has for it."""

    language: str
    match: tuple[str, ...]
    nodes: tuple[tuple[str, Toolchain], ...]  # (node, what it has)
    problems: tuple[NodeReason, ...] = ()  # present but its hello did not run


class ToolchainsReply(Struct, frozen=True, tag="toolchains-reply"):
    """The table of languages."""

    languages: tuple[ToolchainLine, ...]


class StatusReply(Struct, frozen=True, tag="status-reply"):
    """As `master status` shows it."""

    pid: int
    version: str
    socket: str
    state_dir: str
    inventory: str
    inventory_error: str  # "" = the file is what the master works with
    uptime_seconds: float
    nodes: int
    jobs_by_state: dict[str, int]
    clients: int
    memory_bytes: int = 0  # resident, of the master's process
    cpu_seconds: float = 0.0
    ended_last_minute: int = 0  # jobs
    gateway: str = ""  # where users come in, "" = nowhere
    gateway_key: str = ""  # the fingerprint of its host key


class ClientLine(Struct, frozen=True):
    """A user at an address, with all of its connections; the counts are since the master began."""

    user: str
    address: str  # "local" for the Unix socket
    since: float  # when the first of its present connections came
    programs: int
    running: int  # of these, those that are not over
    connections: int = 0


class ClientsReply(Struct, frozen=True, tag="clients-reply"):
    """Clients, who came first first."""

    clients: tuple[ClientLine, ...]


# --- events of a watched job ------------------------------------------------------------------------------------------


class Output(Struct, frozen=True, tag="output"):
    """`size` raw bytes of the program follow. stream: "stdout" | "stderr" | "compile". `offset`: in its stream."""

    stream: str
    attempt: int
    size: int
    offset: int = 0


class Progress(Struct, frozen=True, tag="progress"):
    """An attempt entered a step."""

    attempt: int
    attempts_allowed: int
    node: str
    step: str
    sent_bytes: int = 0  # of a large upload, told a few times a second
    total_bytes: int = 0  # 0 = not worth telling


class Waiting(Struct, frozen=True, tag="waiting"):
    """The job is queued; why, node by node."""

    reason: str
    why: tuple[NodeReason, ...] = ()


class Notice(Struct, frozen=True, tag="notice"):
    """A sentence for the person who waits ("h2 lost (no answer for 10 s), moved to h3 (attempt 2 of 3)")."""

    text: str


class Restarted(Struct, frozen=True, tag="restarted"):
    """This stream of the new attempt does not begin as the old one did: what follows starts at its first byte."""

    stream: str
    attempt: int


class Ended(Struct, frozen=True, tag="ended"):
    """The job is done, and this is how."""

    job: JobLine


Event: TypeAlias = Output | Progress | Waiting | Notice | Restarted | Ended | SweepEvent

Reply: TypeAlias = (
    Welcome
    | Failure
    | Done
    | Blobs
    | Taken
    | Accepted
    | JobsReply
    | NodesReply
    | DiagnoseReply
    | ExecuteReply
    | ExplainReply
    | ToolchainsReply
    | StatusReply
    | ClientsReply
    | SweepReply
    | UsersReply
)

Message: TypeAlias = Hello | Request | Reply | Event
