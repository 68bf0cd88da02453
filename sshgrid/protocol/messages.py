"""The messages between a client and the master: JSON Lines over a byte stream, with raw bytes after some lines.

A line is one JSON object with a "type". When it is one of the payload messages (`PutBlob`, `Output`, `TaskOutput`,
`Input`), exactly `size` raw bytes follow its newline: output is never escaped or encoded. A connection carries one
request at a time. `Watch`, `WatchSweep` and `Logs` are answered with events up to `Ended`, `PutBlob` with nothing,
every other request with one reply; each may be answered with `Failure` instead. The client may send `Input`, `Resize`
and `Cancel` while it watches. A line is at most codec.MAX_LINE bytes long, a payload MAX_PAYLOAD.

Times are seconds since the epoch, durations are seconds, sizes are bytes. sshgrid.protocol.codec encodes and decodes.
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

PROTOCOL = 2  # goes up when a message or a field changes its name or its meaning
MAX_PAYLOAD = 1024 * 1024


# --- requests ---------------------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, tag="hello"):
    """The first message of every connection. Reply: `Welcome`, or `Failure` with the code "version"."""

    version: str
    protocol: int = PROTOCOL


class PutBlob(Struct, frozen=True, tag="put-blob"):
    """Upload a piece of a file; `size` raw bytes follow. After the `last` piece the file must match `sha256`. No
    reply."""

    sha256: str
    size: int
    last: bool


class MissingBlobs(Struct, frozen=True, tag="missing-blobs"):
    """Ask which of these files have to be uploaded before a submission may name them. Reply: `MissingBlobsReply`."""

    sha256: tuple[str, ...]


class TakeFile(Struct, frozen=True, tag="take-file"):
    """Copy a file of the master's own machine into its spool; for the owner only. The numbers are those of stat(2)
    and say which file is meant; a file that has changed since is refused. Reply: `TakeFileReply`."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str, found: Any) -> TakeFile:
        """`found`: the result of stat(2)."""
        return cls(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Submit(Struct, frozen=True, tag="submit"):
    """Submit a job. The same `key` sent twice gives the same job. Reply: `Accepted`, when the job is durable."""

    submission: Submission
    key: str


class Watch(Struct, frozen=True, tag="watch"):
    """Send the events of a job from its beginning until it has ended; without `output` no `Output`."""

    job: JobId
    output: bool = True
    on_disconnect: OnDisconnect = OnDisconnect.KEEP


class Seen(Struct, frozen=True):
    """The client has the first `size` bytes of a stream of this attempt."""

    stream: str
    attempt: int
    size: int


class Logs(Struct, frozen=True, tag="logs"):
    """Send the stored output of one attempt; `attempt` 0 is the newest one. With `follow` until the job has ended, and
    of each newest attempt in turn. Events: `Output`, `Restarted`, `Ended`. A stream starts after the bytes in
    `seen`, else at its last `tail_lines` lines, else at its beginning."""

    job: JobId
    attempt: int = 0
    follow: bool = False
    tail_lines: int | None = None
    streams: tuple[str, ...] = ("stdout", "stderr")
    seen: tuple[Seen, ...] = ()


class Cancel(Struct, frozen=True, tag="cancel"):
    """Send a signal to jobs. INT, TERM and KILL cancel them: INT is followed by TERM after 5 s and by KILL after 10
    s. Other signals are only sent. Reply: `Done` with the number of jobs that had not ended."""

    jobs: tuple[JobId, ...]
    signal: str = "TERM"


class Input(Struct, frozen=True, tag="input"):
    """Bytes for the standard input of the watched interactive run; `size` 0 closes it. No reply."""

    size: int


class Resize(Struct, frozen=True, tag="resize"):
    """The new window size of the watched interactive run on a terminal. No reply."""

    columns: int
    rows: int


class Jobs(Struct, frozen=True, tag="jobs"):
    """List the jobs that a selector ("" = all) and all filters select. Reply: `JobsReply`."""

    selector: str = ""
    user: str = ""
    states: tuple[str, ...] = ()
    since_seconds: float | None = None
    active_only: bool = False
    limit: int = 0  # at most this many: first running, then waiting, then ended jobs; 0 = all


class Info(Struct, frozen=True, tag="info"):
    """Ask for one job with its attempts and, while it waits, what rules each node out. Reply: `JobsReply` with one
    job."""

    job: JobId


class Remove(Struct, frozen=True, tag="remove"):
    """Remove ended jobs, and their output. Reply: `Done` with their number."""

    jobs: tuple[JobId, ...]


class Hold(Struct, frozen=True, tag="hold"):
    """Keep waiting jobs from starting, or `release` them. Reply: `Done` with the number of jobs that wait."""

    jobs: tuple[JobId, ...]
    release: bool = False


class Nodes(Struct, frozen=True, tag="nodes"):
    """List nodes; with `history` each with its CPU use in the last minute. Reply: `NodesReply`."""

    selector: str = ""
    history: bool = False


class CheckNodes(Struct, frozen=True, tag="check-nodes"):
    """Dial these nodes now, whatever their backoff. Reply: `NodesReply`, when each has answered or failed."""

    selector: str


class Diagnose(Struct, frozen=True, tag="diagnose"):
    """Look for settings that break runs on these nodes. Reply: `DiagnoseReply`."""

    selector: str = ""


class Execute(Struct, frozen=True, tag="execute"):
    """Run a command on all of these nodes at once, with an empty standard input. Reply: `ExecuteReply`, when all are
    done."""

    selector: str
    words: tuple[bytes, ...]  # a list of arguments, not a line for a shell
    limit_seconds: float = 60.0


class Explain(Struct, frozen=True, tag="explain"):
    """Ask where this submission would run now, and what rules the other nodes out; nothing is queued. Reply:
    `ExplainReply`."""

    submission: Submission


class Toolchains(Struct, frozen=True, tag="toolchains"):
    """List the languages, and what these nodes have for each. Reply: `ToolchainsReply`."""

    selector: str = ""


class Status(Struct, frozen=True, tag="status"):
    """Ask for the version, the load and the counts of this master. Reply: `StatusReply`."""


class Clients(Struct, frozen=True, tag="clients"):
    """List the clients that are connected or have jobs that have not ended. Reply: `ClientsReply`."""


class Reload(Struct, frozen=True, tag="reload"):
    """Read the inventory file now. Reply: `Done` with the number of nodes, or `Failure` with the code "inventory"."""


class Backup(Struct, frozen=True, tag="backup"):
    """Write a copy of the queue to this absolute path, which must not exist; the master continues. Reply: `Done`."""

    path: str


class Stop(Struct, frozen=True, tag="stop"):
    """Stop the master; with `drain` after the running attempts have ended. Runs continue on their nodes. Reply:
    `Done`."""

    drain: bool = False


# Requests that are answered with one reply.
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


# --- replies ----------------------------------------------------------------------------------------------------------


class Welcome(Struct, frozen=True, tag="welcome"):
    """Reply to `Hello`: the version of sshgrid and the process of the master."""

    version: str
    pid: int


class Failure(Struct, frozen=True, tag="failure"):
    """Reply to a request that failed: the fields of an SshgridError."""

    code: str
    message: str
    hint: str = ""
    exit_status: int = 125


class Done(Struct, frozen=True, tag="done"):
    """Reply to a change that was made. `count`: how many things the request concerned."""

    count: int = 0


class MissingBlobsReply(Struct, frozen=True, tag="missing-blobs-reply"):
    """Reply to `MissingBlobs`: the digests of the files to upload."""

    sha256: tuple[str, ...]


class TakeFileReply(Struct, frozen=True, tag="take-file-reply"):
    """Reply to `TakeFile`: the file is in the spool under this digest."""

    sha256: str


class Accepted(Struct, frozen=True, tag="accepted"):
    """Reply to `Submit`: the job is in the queue, durably."""

    job: JobId


class NodeReason(Struct, frozen=True):
    """Why a node cannot run a job, or does not have a language."""

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
    speculative: bool = False  # started while the attempt before it was still running
    why_compiled: str = ""  # why the binary of another node was not used
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
    exit_status: int | None = None  # with which `run`, `attach` and `wait` of this job exit; None: not ended
    attempts: tuple[AttemptLine, ...] = ()
    why: tuple[NodeReason, ...] = ()
    sweep: SweepProgress | None = None  # None: not a sweep
    fetch: tuple[str, ...] = ()  # globs of the files that are copied back
    fetched: Fetched | None = None  # files of the newest attempt


class JobsReply(Struct, frozen=True, tag="jobs-reply"):
    """Reply to `Jobs` and `Info`: jobs, the oldest first."""

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
    cpu_minute: tuple[int, ...] = ()  # percent, one sample per second, the newest last; with Nodes.history only


class NodesReply(Struct, frozen=True, tag="nodes-reply"):
    """Reply to `Nodes` and `CheckNodes`: nodes in the order of the inventory."""

    nodes: tuple[NodeLine, ...]


class Finding(Struct, frozen=True):
    """One check of `node check`. `hint` says how to mend it, or how to improve what is ok."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


class NodeFindings(Struct, frozen=True):
    """All findings of one node."""

    node: str
    findings: tuple[Finding, ...]


class DiagnoseReply(Struct, frozen=True, tag="diagnose-reply"):
    """Reply to `Diagnose`: nodes in the order of the inventory."""

    nodes: tuple[NodeFindings, ...]


class ExecuteLine(Struct, frozen=True):
    """The result of a command on one node."""

    node: str
    status: int | None  # the exit status, 128+N for signal N; None: see `reason`
    output: int  # index in ExecuteReply.outputs; equal outputs are sent once
    seconds: float
    truncated: bool = False  # there was more output than is kept
    reason: str = ""


class ExecuteReply(Struct, frozen=True, tag="execute-reply"):
    """Reply to `Execute`: a line for each node. `outputs`: the different outputs, each stdout and stderr together in
    the order in which they were written."""

    lines: tuple[ExecuteLine, ...]
    outputs: tuple[bytes, ...]


class ExplainReply(Struct, frozen=True, tag="explain-reply"):
    """Reply to `Explain`. `chosen`: the node, "" when no node can take the job now. `scores`: (node, busy share after
    correction), of which the lowest is best. `why`: what rules the other nodes out."""

    chosen: str
    scores: tuple[tuple[str, float], ...]
    why: tuple[NodeReason, ...]


class ToolchainLine(Struct, frozen=True):
    """A language, and what each node has for it."""

    language: str
    match: tuple[str, ...]
    nodes: tuple[tuple[str, Toolchain], ...]  # (node, its toolchain)
    problems: tuple[NodeReason, ...] = ()  # installed, but its smoke test failed


class ToolchainsReply(Struct, frozen=True, tag="toolchains-reply"):
    """Reply to `Toolchains`: the languages in the order of the inventory."""

    languages: tuple[ToolchainLine, ...]


class StatusReply(Struct, frozen=True, tag="status-reply", forbid_unknown_fields=False):
    """Reply to `Status`. Paths are "" for a user who is not an admin.

    A client stops an idle master of any version, and reads its status before that: unknown fields are ignored.
    """

    pid: int
    version: str
    socket: str
    state_dir: str
    inventory: str
    inventory_error: str  # "": the master uses the file as it is
    uptime_seconds: float
    nodes: int
    jobs_by_state: dict[str, int]
    clients: int
    memory_bytes: int = 0  # resident, of the master's process
    cpu_seconds: float = 0.0
    ended_last_minute: int = 0  # jobs
    gateway: str = ""  # HOST:PORT of the SSH gateway; "": it has none
    gateway_key: str = ""  # the fingerprint of its host key


class ClientLine(Struct, frozen=True):
    """A user at an address, with all of its connections. Counts are since the master started."""

    user: str
    address: str  # "local" for the Unix socket
    since: float  # start of the oldest connection that is open
    programs: int  # submitted
    running: int  # submitted and not ended
    connections: int = 0


class ClientsReply(Struct, frozen=True, tag="clients-reply"):
    """Reply to `Clients`: the longest connected first."""

    clients: tuple[ClientLine, ...]


# --- events of a watched job ------------------------------------------------------------------------------------------


class Output(Struct, frozen=True, tag="output"):
    """Output of the program: `size` raw bytes follow. `stream`: "stdout", "stderr" or "compile". `offset`: in its
    stream."""

    stream: str
    attempt: int
    size: int
    offset: int = 0


class Progress(Struct, frozen=True, tag="progress"):
    """An attempt has entered a step, or has sent more bytes of a large upload."""

    attempt: int
    attempts_allowed: int
    node: str
    step: str
    sent_bytes: int = 0  # of a large upload; sent a few times per second
    total_bytes: int = 0  # 0: the upload is small


class Waiting(Struct, frozen=True, tag="waiting"):
    """The job waits: the reason for all nodes together, and for each node."""

    reason: str
    why: tuple[NodeReason, ...] = ()


class Notice(Struct, frozen=True, tag="notice"):
    """A sentence about the job for the user ("h2 lost (no answer for 10 s), moved to h3 (attempt 2 of 3)")."""

    text: str


class Restarted(Struct, frozen=True, tag="restarted"):
    """The output of this attempt differs from what was sent before: the stream starts again at its first byte."""

    stream: str
    attempt: int


class Ended(Struct, frozen=True, tag="ended"):
    """The last event: the job has ended, or with `Logs` the stored output is complete."""

    job: JobLine


Event: TypeAlias = Output | Progress | Waiting | Notice | Restarted | Ended | SweepEvent

Reply: TypeAlias = (
    Welcome
    | Failure
    | Done
    | MissingBlobsReply
    | TakeFileReply
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
