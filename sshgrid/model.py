"""The values of sshgrid: frozen types that all other modules share.

No value decides, waits, reads a file or uses a clock. Times are Unix seconds (float) unless a name says
otherwise; sizes are bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal, NewType, TypeAlias

import msgspec

JobId = NewType("JobId", int)  # the id of a task of a sweep is negative: see task_id

MAX_TASKS = (1 << 20) - 1  # of one sweep


def task_id(sweep: JobId, number: int) -> JobId:
    """The id of a task. It is negative, so it never equals the id of a job."""
    return JobId(-(sweep << 20 | number))


def is_task(job: JobId) -> bool:
    """Whether this is the id of a task of a sweep."""
    return job < 0


def sweep_of(job: JobId) -> JobId | None:
    """The sweep that a task belongs to; None for any other job."""
    return JobId(-job >> 20) if is_task(job) else None


def task_number(job: JobId) -> int:
    """The number of a task in its sweep, from 1."""
    return -job & MAX_TASKS


def job_text(job: JobId) -> str:
    """A job as users write it: 42, or 42.17 for the 17th task of sweep 42."""
    return str(job) if not is_task(job) else f"{-job >> 20}.{-job & MAX_TASKS}"


# The outputs of an attempt: the program's, the compiler's, and a tar archive of the files that `--fetch` named.
PROGRAM_STREAMS = ("stdout", "stderr")
TEXT_STREAMS = (*PROGRAM_STREAMS, "compile")
STREAMS = (*TEXT_STREAMS, "files")


class Struct(msgspec.Struct, frozen=True, kw_only=False, forbid_unknown_fields=True):
    """Base of all values: immutable, compared by content, encoded and decoded as JSON by msgspec."""


# --- users ------------------------------------------------------------------------------------------------------------


class Role(enum.StrEnum):
    """What a user may do. `owner` owns the master's process; the others log in at the SSH gateway."""

    OWNER = "owner"
    ADMIN = "admin"
    USER = "user"


class User(Struct, frozen=True):
    """The user who sent a request. The name comes from the login, never from the request."""

    name: str
    role: Role = Role.USER


class Caps(Struct, frozen=True):
    """The limits of one user; None = no limit."""

    queued: int | None = None  # queued jobs
    running: int | None = None  # running jobs; further ones stay queued
    wall_seconds: float | None = None  # of one run
    output_bytes: int | None = None  # of one run
    upload_bytes: int | None = None  # of one job, and of the user's folder


class UserKey(Struct, frozen=True):
    """A public key that a user may log in with."""

    fingerprint: str  # "SHA256:..." as ssh-keygen -l prints it
    line: str  # as in authorized_keys, without options


class Account(Struct, frozen=True):
    """The account of a user of the SSH gateway."""

    name: str
    role: Role
    created: float
    disabled: bool = False
    password: str = ""  # Argon2id hash in the PHC format; "" = no password, only keys
    keys: tuple[UserKey, ...] = ()
    caps: Caps = Caps()

    def __repr__(self) -> str:
        return f"Account({self.name!r}, {self.role.value!r})"


# --- nodes ------------------------------------------------------------------------------------------------------------


class Node(Struct, frozen=True):
    """One machine of the inventory, as written there (defaults and group already merged in)."""

    name: str
    host: str = ""
    connection: str = "ssh"  # "ssh" | "local" (an SSH server inside the master's own process)
    port: int | None = None  # None = from ssh_config, else 22
    user: str | None = None
    ssh_config: str | None = None  # a Host alias of the user's ssh_config
    identity_file: str | None = None
    known_hosts: str | None = None  # None = the user's and the system's files
    slots: int | None = None  # None = auto = number of cores
    gpus: int | None = None  # None = the number that the probe finds
    weight: float = 1.0
    tags: frozenset[str] = frozenset()
    toolchains: frozenset[str] | None = None  # None = those that the probe finds
    max_load: float | None = None  # busy share of the cores, 0.0 to 1.0 (or more), above which no job starts
    workdir: str = "/var/tmp/sshgrid-{uid}"
    connect_timeout_seconds: float = 10.0
    drained: bool = False
    shared_builds: bool = True  # shares builds with other nodes; False = compiles everything itself


class Toolchain(Struct, frozen=True):
    """A language that works on one node: its smoke test ran there."""

    language: str
    version: str  # "17.0.15"; "" when the tool prints none
    commands: Mapping[str, str]  # command as the table writes it ("gcc|clang|cc") -> absolute path on the node
    fingerprint: str  # changes when a tool changes
    kind: str = ""  # equal on nodes with the same tools; part of the build key; "" = use the fingerprint


class Facts(Struct, frozen=True):
    """What the probe found on a node."""

    system: str  # uname -s
    architecture: str  # uname -m
    libc: str  # "glibc 2.36", "musl", ""
    cores: int
    memory_bytes: int
    boot_id: str  # boot id and PID namespace; when it changes, every run there has ended
    uid: int
    workdir: str  # absolute
    isolation: str  # "pidns" (no process escapes) | "session" (setsid and a scan: best effort)
    helpers: frozenset[str] = frozenset()
    uptime_seconds: float = 0.0
    gpus: int = 0


class Sample(Struct, frozen=True):
    """One load sample, which is also the heartbeat of a node."""

    at: float  # the master's clock when it arrived
    uptime_seconds: float  # the node's own clock, in which leases and start deadlines are given
    busy_cores: float | None  # from /proc/stat between two samples; None for the first one
    load: float  # one-minute load average
    memory_free_bytes: int


class NodeState(enum.StrEnum):
    """The state of a node, in Slurm's words."""

    IDLE = "IDLE"
    MIXED = "MIXED"
    ALLOCATED = "ALLOCATED"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    DOWN = "DOWN"
    UNKNOWN = "UNKNOWN"


# --- programs ---------------------------------------------------------------------------------------------------------


class SourceFile(Struct, frozen=True):
    """One file of a program; the spool holds its bytes under their SHA-256."""

    name: str  # relative, "/" separated, no ".."
    sha256: str
    size: int
    executable: bool = False


class Limits(Struct, frozen=True):
    """The limits of a run; None = no limit."""

    wall_seconds: float | None = None
    memory_bytes: int | None = None
    output_bytes: int | None = None  # stdout and stderr together
    processes: int | None = None  # at the same time; threads do not count
    fetch_bytes: int | None = None  # of the fetched files; None = the master's limit


class Program(Struct, frozen=True):
    """A program to run. The same value gives the same build on the same kind of node."""

    language: str
    entry: str  # name of the file (in `files`) that the user named
    files: tuple[SourceFile, ...]
    args: tuple[bytes, ...] = ()  # bytes: an argument need not be UTF-8
    env: tuple[tuple[str, bytes], ...] = ()
    stdin: SourceFile | None = None
    flags: tuple[str, ...] = ()
    version: str = ""  # "", or a constraint such as ">=17"
    limits: Limits = Limits()
    data: tuple[SourceFile, ...] = ()  # placed in the run's folder; not part of the build
    packs: tuple[SourceFile, ...] = ()  # tar archives of small files, unpacked in the run's folder
    fetch: tuple[str, ...] = ()  # patterns below the run's folder: the files that are copied back after the end

    @property
    def uploads(self) -> tuple[SourceFile, ...]:
        """All files that the program needs."""
        return (*self.files, *self.data, *self.packs, *((self.stdin,) if self.stdin else ()))


class OnHostLoss(enum.StrEnum):
    """What happens to a job whose host falls silent: `run --on-host-loss`."""

    RELAUNCH = "relaunch"
    WAIT = "wait"
    FAIL = "fail"
    FENCE = "fence"


class OnDisconnect(enum.StrEnum):
    """What happens to a job whose client disconnects: `run --on-disconnect`."""

    KEEP = "keep"
    CANCEL = "cancel"


class Halt(Struct, frozen=True):
    """When a sweep starts no more tasks (`soon`), or also ends running ones (`now`): GNU parallel's --halt."""

    when: Literal["never", "soon", "now"] = "never"
    reason: Literal["fail", "success", "done"] = "fail"  # which tasks count
    count: int | None = None
    percent: float | None = None  # of all tasks


class Sweep(Struct, frozen=True):
    """One program over many parameters. Each task is a job of its own, numbered from 1 in its sweep."""

    table: SourceFile  # the parameters, written by sweeps.parameters.encode; uploaded like a source file
    tasks: int  # rows of the table
    chosen: str = ""  # numbers of the tasks to run, as "1-40,45"; "" = all
    at_once: int | None = None  # the most tasks that run at the same time
    halt: Halt = Halt()
    backup: bool = False  # slow last tasks get a speculative attempt on another node
    inputs: SourceFile | None = None  # the stdin of each task, written by sweeps.inputs.encode; None = the same for all

    @property
    def uploads(self) -> tuple[SourceFile, ...]:
        """The lists that describe the tasks, without the files that these lists name."""
        return (self.table, *((self.inputs,) if self.inputs else ()))


class Submission(Struct, frozen=True):
    """A program and the options of its submission. For a sweep the program's arguments are a template."""

    program: Program
    command: str  # what `ps` shows: the file and its arguments as typed
    name: str = ""
    on: str = ""  # node selector, "" = any
    retries: int | None = None  # further attempts after a host failure; None = from the inventory
    priority: int = 0
    on_host_loss: OnHostLoss = OnHostLoss.RELAUNCH
    on_disconnect: OnDisconnect = OnDisconnect.KEEP
    interactive: bool = False
    terminal: bool = False  # interactive on a pseudo-terminal
    keep_children: bool = False  # processes that the program leaves behind are not ended
    wait_for_nodes: bool = False  # detached: stay queued while all suitable nodes are down, instead of giving up
    sweep: Sweep | None = None
    slots: int = 1  # slots that a run takes on its node
    gpus: int = 0  # GPUs that a run has for itself
    verify_build: bool = False  # use a build of another node only after its smoke test ran here


# --- how an attempt and a job end -------------------------------------------------------------------------------------


class Usage(Struct, frozen=True):
    """The resources that an ended run used, as far as the node could measure."""

    started: float = 0.0  # uptime of the node in seconds, as is `ended`
    ended: float = 0.0
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None


class Fetched(Struct, frozen=True):
    """The files that were copied back from a run's folder."""

    files: int = 0
    size: int = 0  # bytes of all of them
    warnings: tuple[str, ...] = ()
    whole: bool = True  # False: some file is missing, and a warning names it


class Exited(Struct, frozen=True, tag="exited"):
    """The program ended. A non-zero code is a result, not an error; code 128+N is signal N, as in a shell."""

    code: int


class CompileFailed(Struct, frozen=True, tag="compile-failed"):
    """Compilation failed; the output of the compiler is the attempt's `compile` stream."""

    code: int


class TimedOut(Struct, frozen=True, tag="timed-out"):
    """The time limit ended the run."""

    wall_seconds: float


class OutOfMemory(Struct, frozen=True, tag="out-of-memory"):
    """The memory limit ended the run."""

    limit_bytes: int


class ProcessLimit(Struct, frozen=True, tag="process-limit"):
    """The process limit ended the run."""

    processes: int


class OutputLimit(Struct, frozen=True, tag="output-limit"):
    """The output limit ended the run."""

    limit_bytes: int


class Cancelled(Struct, frozen=True, tag="cancelled"):
    """A user ended the job: "INT", "TERM by ana"."""

    by: str = ""


class HostLost(Struct, frozen=True, tag="host-lost"):
    """The machine or the connection to it failed. The program is not the cause."""

    reason: str


class ToolchainBroken(Struct, frozen=True, tag="toolchain-broken"):
    """The compiler or interpreter itself failed (missing, crashed, no space)."""

    reason: str


class GaveUp(Struct, frozen=True, tag="gave-up"):
    """No node was left that could run the job."""

    reason: str
    no_toolchain: bool = False  # no node has a toolchain for its language


class SweepDone(Struct, frozen=True, tag="sweep-done"):
    """All tasks of a sweep have ended, or will never begin because it was halted."""

    tasks: int
    failed: int
    left: int = 0  # tasks that never began


class Crashed(Struct, frozen=True, tag="crashed"):
    """A bug in sshgrid; the traceback is in the master's log."""

    reason: str


class Superseded(Struct, frozen=True, tag="superseded"):
    """The other of two parallel attempts gave the result; the result of this one does not count."""

    by: int  # number of the other attempt


Outcome: TypeAlias = (
    Exited
    | CompileFailed
    | TimedOut
    | OutOfMemory
    | OutputLimit
    | ProcessLimit
    | Cancelled
    | HostLost
    | ToolchainBroken
    | Crashed
)
Verdict: TypeAlias = (
    Exited
    | CompileFailed
    | TimedOut
    | OutOfMemory
    | OutputLimit
    | ProcessLimit
    | Cancelled
    | GaveUp
    | SweepDone
    | Crashed
)


# --- jobs -------------------------------------------------------------------------------------------------------------


class Phase(enum.StrEnum):
    """Where a job is in the queue. The verdict says how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Step(enum.StrEnum):
    """What a running attempt is doing."""

    UPLOADING = "uploading"
    COMPILING = "compiling"
    RUNNING = "running"
    FETCHING = "fetching"


class Attempt(Struct, frozen=True):
    """One attempt of one job on one node. `number` is the fence: results of an attempt that is not live are dropped."""

    job: JobId
    number: int  # from 1
    node: str

    def __str__(self) -> str:
        return f"{job_text(self.job)}.{self.number}"


class AttemptRecord(Struct, frozen=True):
    """An attempt as the queue stores it."""

    number: int
    node: str
    began: float
    step: Step = Step.UPLOADING
    outcome: Outcome | Superseded | None = None
    ended: float | None = None
    uploaded_bytes: int = 0
    compiled: bool | None = None  # None = not known yet, or nothing to compile
    toolchain: str = ""  # "java 17.0.15"
    isolation: str = ""
    usage: Usage = Usage()
    gpus: tuple[int, ...] = ()  # numbers of its GPUs on the node
    batch: str = ""  # name of its batch's folder on the node; "" = not in a batch
    fetched: Fetched | None = None  # None = nothing was requested, or the run did not get that far
    speculative: bool = False  # begun beside the attempt before it, which still ran
    # Why it was compiled although another node had a build; "" = no node had one, or it was not compiled.
    why_compiled: str = ""
    upload_left_bytes: int = 0  # of a large upload in progress


class Job(Struct, frozen=True):
    """One accepted submission: its phase, its attempts, and its verdict."""

    id: JobId
    owner: str
    submission: Submission
    submitted: float
    phase: Phase = Phase.QUEUED
    attempts: tuple[AttemptRecord, ...] = ()
    excluded: frozenset[str] = frozenset()  # nodes that failed this job
    not_before: float = 0.0
    verdict: Verdict | None = None
    cancel_requested: bool = False
    held: str = ""  # why it is held; "" = not held
    ended: float | None = None
    cancel_by: str = ""  # signal and user: "INT", "TERM by ana"; valid while cancel_requested
    forgiven: int = 0  # attempts up to this number do not count: `retry` was requested after them

    @property
    def live(self) -> tuple[AttemptRecord, ...]:
        """The attempts that can still give the result: the newest, and the one before a speculative attempt."""
        if self.phase is not Phase.RUNNING or not self.attempts:
            return ()
        newest = self.attempts[-2:] if self.attempts[-1].speculative else self.attempts[-1:]
        return tuple(record for record in newest if record.outcome is None)

    @property
    def current(self) -> AttemptRecord | None:
        """The attempt that is shown: the newest; of two parallel ones the first, if it is live or gave the result."""
        if not self.attempts:
            return None
        if self.attempts[-1].speculative and self.attempts[-2].outcome in (None, self.verdict):
            return self.attempts[-2]
        return self.attempts[-1]


class RetryPolicy(Struct, frozen=True):
    """The number of further attempts, their backoff, and the patience with silent hosts: `retry` of the inventory."""

    retries: int = 2
    backoff_seconds: float = 2.0
    backoff_max_seconds: float = 60.0
    patience_min_seconds: float = 10.0
    patience_max_seconds: float = 600.0


class Language(Struct, frozen=True):
    """One row of the table of languages. A command's first word may name alternatives: ``gcc|clang|cc``.

    Placeholders in `compile` and `run`, each a whole word or a part of one: ``{src}`` entry file, ``{srcs}`` all source
    files of this language, ``{exe}`` the executable to create, ``{out}`` the output folder, ``{main}`` the name of
    the class with main (Java), ``{dir}`` the build folder, ``{cache}`` a folder of the node that survives runs. As
    whole words only: ``{flags}``, ``{libs}`` (the ``-l`` flags, which a linker wants last), ``{args}``.
    """

    name: str
    match: tuple[str, ...]  # file name globs, case-sensitive
    run: tuple[str, ...]
    compile: tuple[tuple[str, ...], ...] = ()  # commands in order
    version: tuple[str, ...] = ()  # command that prints a version
    interpreters: tuple[str, ...] = ()  # names in a #! line
    hello: str = ""  # smoke test: a program that prints "hello"; "" = a successful version command is enough
    env: tuple[tuple[str, str], ...] = ()
    address_space_limit: bool = False  # `ulimit -v` may enforce --memory
    default: bool = True  # on by default; False = offered where the probe finds it
    portable: bool = False  # a build runs wherever toolchain, machine type and C library are the same


class Group(Struct, frozen=True):
    """A group of nodes; each node has the group's name as a tag."""

    name: str
    nodes: frozenset[str]
    max_jobs_per_user: int | None = None  # running at the same time on all its nodes together


class Inventory(Struct, frozen=True):
    """A valid inventory: ranges expanded, defaults merged, the table of languages complete."""

    path: str
    nodes: tuple[Node, ...]
    languages: tuple[Language, ...]
    placement: str
    retry: RetryPolicy
    digest: str  # SHA-256 of the text
    groups: tuple[Group, ...] = ()


class Recipe(Struct, frozen=True):
    """The build and the command line of a program for one node's toolchain: the input of the wrapper."""

    build_key: str  # hex; same key = same build
    layout: tuple[tuple[str, SourceFile], ...]  # path in the build folder -> file
    compile: tuple[tuple[str, ...], ...]  # argv lists, run inside the build folder; () = nothing to compile
    run: tuple[bytes, ...]  # argv; "{dir}" at the start of a word stands for the absolute build folder
    env: tuple[tuple[str, bytes], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()  # (name on the node, the user's name), for compiler messages
    address_space_limit: bool = False
    shared: bool = False  # a build of another node with the same key may be used
    verify: str = ""  # language whose smoke test, built on that node, must run here first; "" = no check
