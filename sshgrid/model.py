"""The nouns of sshgrid: frozen values that every other module speaks in.

Nothing here decides, waits, reads a file or looks at a clock. Times are Unix seconds (float) unless a name says
otherwise; sizes are bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal, NewType, TypeAlias

import msgspec

JobId = NewType("JobId", int)  # of a task of a sweep it is negative: see task_id

MAX_TASKS = (1 << 20) - 1  # of one sweep


def task_id(sweep: JobId, number: int) -> JobId:
    """The id of a task. Negative, so that it never meets the ids that are given one after the other."""
    return JobId(-(sweep << 20 | number))


def sweep_of(job: JobId) -> JobId | None:
    """The sweep that a task belongs to; None for any other job."""
    return JobId(-job >> 20) if job < 0 else None


def task_number(job: JobId) -> int:
    """The number of a task in its sweep, from 1."""
    return -job & MAX_TASKS


def job_text(job: JobId) -> str:
    """A job as people write it: 42, or 42.17 for the 17th task of sweep 42."""
    return str(job) if job >= 0 else f"{-job >> 20}.{-job & MAX_TASKS}"


# The outputs of an attempt; `files` is a tar archive of what the run brought back.
STREAMS = ("stdout", "stderr", "compile", "files")


class Struct(msgspec.Struct, frozen=True, kw_only=False, forbid_unknown_fields=True):
    """Base of all values: immutable, compared by content, JSON in and out by msgspec."""


# --- people -----------------------------------------------------------------------------------------------------------


class Role(enum.StrEnum):
    """What somebody may do: `owner` is who owns the master's process, the others come through the door."""

    OWNER = "owner"
    ADMIN = "admin"
    USER = "user"


class User(Struct, frozen=True):
    """Who asks. The name is the one that a login has proved, never one that was only said."""

    name: str
    role: Role = Role.USER


class Caps(Struct, frozen=True):
    """What one user may have or ask for; None = no limit."""

    queued: int | None = None  # jobs that wait
    running: int | None = None  # jobs that run; further ones wait
    wall_seconds: float | None = None  # of one run
    output_bytes: int | None = None  # of one run
    upload_bytes: int | None = None  # of one job, and of the user's folder


class UserKey(Struct, frozen=True):
    """A public key that a user may log in with."""

    fingerprint: str  # "SHA256:..." as ssh-keygen -l prints it
    line: str  # as in authorized_keys, without options


class Account(Struct, frozen=True):
    """Somebody who may come through the door."""

    name: str
    role: Role
    created: float
    disabled: bool = False
    password: str = ""  # Argon2id in the PHC format; "" = none, so only keys
    keys: tuple[UserKey, ...] = ()
    caps: Caps = Caps()

    def __repr__(self) -> str:
        return f"User({self.name!r}, {self.role.value!r})"


# --- nodes ------------------------------------------------------------------------------------------------------------


class Node(Struct, frozen=True):
    """One machine of the inventory, as written there (defaults and group already merged in)."""

    name: str
    host: str = ""
    connection: str = "ssh"  # "ssh" | "local" (an SSH server inside the master's own process)
    port: int | None = None  # None = what ssh_config or 22 says
    user: str | None = None
    ssh_config: str | None = None  # a Host alias of the user's ssh_config
    identity_file: str | None = None
    known_hosts: str | None = None  # None = the user's and the system's files
    slots: int | None = None  # None = auto = number of cores
    gpus: int | None = None  # None = as many as the probe finds
    weight: float = 1.0
    tags: frozenset[str] = frozenset()
    toolchains: frozenset[str] | None = None  # None = whatever the probe finds
    max_load: float | None = None  # busy share of the cores, 0.0 to 1.0 (or more), above which nothing new starts
    workdir: str = "/var/tmp/sshgrid-{uid}"
    connect_timeout_seconds: float = 10.0
    drained: bool = False
    shared_builds: bool = True  # takes and gives builds; False = compiles all that it runs


class Toolchain(Struct, frozen=True):
    """One language as one node really has it: proved by a hello that ran there."""

    language: str
    version: str  # "17.0.15"; "" when the tool does not say
    commands: Mapping[str, str]  # command as the table writes it ("gcc|clang|cc") -> absolute path on the node
    fingerprint: str  # changes when a tool changes
    kind: str = ""  # the same on nodes that have the same tools: part of the build key; "" = the fingerprint


class Facts(Struct, frozen=True):
    """What first contact found on a node."""

    system: str  # uname -s
    architecture: str  # uname -m
    libc: str  # "glibc 2.36", "musl", ""
    cores: int
    memory_bytes: int
    boot_id: str  # boot id and pid namespace: another value means that every run there is gone
    uid: int
    workdir: str  # absolute
    isolation: str  # "pidns" (nothing escapes) | "session" (setsid and a scan: best effort)
    helpers: frozenset[str] = frozenset()
    uptime_seconds: float = 0.0
    gpus: int = 0


class Sample(Struct, frozen=True):
    """One load sample; it is the heartbeat as well."""

    at: float  # the master's clock when it arrived
    uptime_seconds: float  # the node's own clock: leases and not-after times are written in it
    busy_cores: float | None  # from /proc/stat between two samples; None for the first one
    load: float  # one-minute load average
    memory_free_bytes: int


class NodeState(enum.StrEnum):
    """Slurm's words for what a node is doing."""

    IDLE = "IDLE"
    MIXED = "MIXED"
    ALLOCATED = "ALLOCATED"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    DOWN = "DOWN"
    UNKNOWN = "UNKNOWN"


# --- programs ---------------------------------------------------------------------------------------------------------


class SourceFile(Struct, frozen=True):
    """One file of a program; its bytes live in the spool under their SHA-256."""

    name: str  # relative, "/" separated, no ".."
    sha256: str
    size: int
    executable: bool = False


class Limits(Struct, frozen=True):
    """What a run may use; None = no limit."""

    wall_seconds: float | None = None
    memory_bytes: int | None = None
    output_bytes: int | None = None  # stdout and stderr together
    processes: int | None = None  # at one time; threads do not count
    fetch_bytes: int | None = None  # of the files that are brought back; None = as much as a master takes


class Program(Struct, frozen=True):
    """What is to be run: the same value gives the same build on the same kind of node."""

    language: str
    entry: str  # name of the file (in `files`) that the user named
    files: tuple[SourceFile, ...]
    args: tuple[bytes, ...] = ()  # bytes: an argument need not be UTF-8
    env: tuple[tuple[str, bytes], ...] = ()
    stdin: SourceFile | None = None
    flags: tuple[str, ...] = ()
    version: str = ""  # "", or a constraint such as ">=17"
    limits: Limits = Limits()
    data: tuple[SourceFile, ...] = ()  # placed in the run's folder; no part of the build
    packs: tuple[SourceFile, ...] = ()  # tar archives of small files, unpacked in the run's folder
    fetch: tuple[str, ...] = ()  # globs below the run's folder: what is brought back after the end

    @property
    def uploads(self) -> tuple[SourceFile, ...]:
        """Every file that it needs."""
        return (*self.files, *self.data, *self.packs, *((self.stdin,) if self.stdin else ()))


class OnHostLoss(enum.StrEnum):
    """What becomes of a job whose host falls silent: `run --on-host-loss`."""

    RELAUNCH = "relaunch"
    WAIT = "wait"
    FAIL = "fail"
    FENCE = "fence"


class OnDisconnect(enum.StrEnum):
    """What becomes of a job whose client is lost: `run --on-disconnect`."""

    KEEP = "keep"
    CANCEL = "cancel"


class Halt(Struct, frozen=True):
    """When a sweep starts no more tasks (`soon`), or ends those that run as well (`now`), as GNU parallel's --halt."""

    when: Literal["never", "soon", "now"] = "never"
    reason: Literal["fail", "success", "done"] = "fail"  # which tasks count
    count: int | None = None
    percent: float | None = None  # of all tasks


class Sweep(Struct, frozen=True):
    """One program over many parameters. Each task is a job of its own, numbered from 1 in its sweep."""

    table: SourceFile  # the parameters, as parameters.encode wrote them; its bytes travel like a source file
    tasks: int  # rows of the table
    chosen: str = ""  # numbers of the tasks to be run, as "1-40,45"; "" = all
    at_once: int | None = None  # so many tasks run at the same time at most
    halt: Halt = Halt()
    backup: bool = False  # stragglers get a second attempt on another node
    inputs: SourceFile | None = None  # what each task reads, as inputs.encode wrote it; None = all the same

    @property
    def uploads(self) -> tuple[SourceFile, ...]:
        """The lists that say what its tasks are; files that these name are not among them."""
        return (self.table, *((self.inputs,) if self.inputs else ()))


class Submission(Struct, frozen=True):
    """A program and how its owner wants it treated. For a sweep the program's arguments are a template."""

    program: Program
    command: str  # what `ps` shows: the file and its arguments as typed
    name: str = ""
    on: str = ""  # node selector, "" = any
    retries: int | None = None  # further attempts after host failure; None = what the inventory says
    priority: int = 0
    on_host_loss: OnHostLoss = OnHostLoss.RELAUNCH
    on_disconnect: OnDisconnect = OnDisconnect.KEEP
    interactive: bool = False
    terminal: bool = False  # interactive on a pseudo-terminal
    keep_children: bool = False  # what the program leaves running stays when it ends by itself
    wait_for_nodes: bool = False  # detached: stay queued while every able node is down, instead of giving up
    sweep: Sweep | None = None
    slots: int = 1  # that a run takes on its node: as many as it has threads
    gpus: int = 0  # that a run has for itself
    verify_build: bool = False  # a build of another node is taken only after a hello of its ran


# --- how an attempt and a job end -------------------------------------------------------------------------------------


class Usage(Struct, frozen=True):
    """What a finished run used, as far as the node could tell."""

    started: float = 0.0  # of the node's own uptime, in seconds, as `ended`
    ended: float = 0.0
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None


class Fetched(Struct, frozen=True):
    """What was brought back of a run's folder, and what was not."""

    files: int = 0
    size: int = 0  # bytes of all of them
    warnings: tuple[str, ...] = ()
    whole: bool = True  # all of these files came; what did not is told in the warnings


class Exited(Struct, frozen=True, tag="exited"):
    """The program ran to its end; a non-zero code is a result, not an error. Code 128+N is signal N, as in a shell."""

    code: int


class CompileFailed(Struct, frozen=True, tag="compile-failed"):
    """The compiler said no; its words are the attempt's `compile` stream."""

    code: int


class TimedOut(Struct, frozen=True, tag="timed-out"):
    """The time limit ended it."""

    wall_seconds: float


class OutOfMemory(Struct, frozen=True, tag="out-of-memory"):
    """The memory limit ended it."""

    limit_bytes: int


class ProcessLimit(Struct, frozen=True, tag="process-limit"):
    """It had more processes than it may."""

    processes: int


class OutputLimit(Struct, frozen=True, tag="output-limit"):
    """It printed more than it may."""

    limit_bytes: int


class Cancelled(Struct, frozen=True, tag="cancelled"):
    """Somebody ended it: "INT", "TERM by ana"."""

    by: str = ""


class HostLost(Struct, frozen=True, tag="host-lost"):
    """The machine, or the road to it, failed; says nothing about the program."""

    reason: str


class ToolchainBroken(Struct, frozen=True, tag="toolchain-broken"):
    """The compiler or interpreter itself failed (missing, crashed, no space)."""

    reason: str


class GaveUp(Struct, frozen=True, tag="gave-up"):
    """No node was left to try."""

    reason: str
    no_toolchain: bool = False  # no node can ever run its language


class SweepDone(Struct, frozen=True, tag="sweep-done"):
    """All tasks of a sweep are over, or were not begun because it was halted."""

    tasks: int
    failed: int
    left: int = 0  # never begun


class Crashed(Struct, frozen=True, tag="crashed"):
    """Our bug; the traceback is in the master's log."""

    reason: str


class Superseded(Struct, frozen=True, tag="superseded"):
    """The other of two attempts that ran side by side brought the result. Nothing that this one did counts."""

    by: int  # number of the other


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
    """Where a job is in the queue; how it ended is its verdict."""

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
    """One try of one job on one node. `number` is the fence: only news of an attempt that is live is taken."""

    job: JobId
    number: int  # from 1
    node: str

    def __str__(self) -> str:
        return f"{job_text(self.job)}.{self.number}"


class AttemptRecord(Struct, frozen=True):
    """An attempt as it is remembered."""

    number: int
    node: str
    began: float
    step: Step = Step.UPLOADING
    outcome: Outcome | Superseded | None = None
    ended: float | None = None
    uploaded_bytes: int = 0
    compiled: bool | None = None  # None = not known yet or nothing to compile
    toolchain: str = ""  # "java 17.0.15"
    isolation: str = ""
    usage: Usage = Usage()
    gpus: tuple[int, ...] = ()  # numbers of those that it has on its node
    batch: str = ""  # the folder on the node of the batch that it was begun in; "" = begun alone
    fetched: Fetched | None = None  # None = nothing was asked for, or it did not come to that
    speculative: bool = False  # begun beside the attempt before it, which still ran
    why_compiled: str = ""  # why it was compiled though another node had it; "" = nobody had, or it was not
    upload_left_bytes: int = 0  # of a large upload that is under way


class Job(Struct, frozen=True):
    """One submission on its way: where it is, what was tried, and how it ended."""

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
    held: str = ""  # why it is held; "" = it is not
    ended: float | None = None
    cancel_by: str = ""  # who asked, the signal first: "INT", "TERM by ana"; read while cancel_requested
    forgiven: int = 0  # attempts up to this number do not count against it: somebody has asked for a retry

    @property
    def live(self) -> tuple[AttemptRecord, ...]:
        """The attempts that may still bring its result: the newest, and beside a backup the one before it."""
        if self.phase is not Phase.RUNNING or not self.attempts:
            return ()
        newest = self.attempts[-2:] if self.attempts[-1].speculative else self.attempts[-1:]
        return tuple(record for record in newest if record.outcome is None)

    @property
    def current(self) -> AttemptRecord | None:
        """The attempt that speaks for it: the newest; of two side by side the first, if it lives or has decided."""
        if not self.attempts:
            return None
        if self.attempts[-1].speculative and self.attempts[-2].outcome in (None, self.verdict):
            return self.attempts[-2]
        return self.attempts[-1]


class RetryPolicy(Struct, frozen=True):
    """How often, how soon and how patiently hosts are tried again: `retry` of the inventory."""

    retries: int = 2
    backoff_seconds: float = 2.0
    backoff_max_seconds: float = 60.0
    patience_min_seconds: float = 10.0
    patience_max_seconds: float = 600.0


class Language(Struct, frozen=True):
    """One row of the table of languages. A command's first word may name alternatives: ``gcc|clang|cc``.

    Placeholders in `compile` and `run`, each a whole word or a part of one: ``{src}`` entry file, ``{srcs}`` all source
    files of this language, ``{exe}`` the executable to be made, ``{out}`` the output folder, ``{main}`` the name of
    what has main (Java), ``{dir}`` the build folder, ``{cache}`` a folder of the node that survives runs; as whole
    words only: ``{flags}``, ``{libs}`` (the ``-l`` flags, which a linker wants last), ``{args}``.
    """

    name: str
    match: tuple[str, ...]  # file name globs, case-sensitive
    run: tuple[str, ...]
    compile: tuple[tuple[str, ...], ...] = ()  # commands in order
    version: tuple[str, ...] = ()  # command that prints a version
    interpreters: tuple[str, ...] = ()  # names in a #! line
    hello: str = ""  # a program that prints "hello"; "" = a version command that succeeds is proof enough
    env: tuple[tuple[str, str], ...] = ()
    address_space_limit: bool = False  # `ulimit -v` may enforce --memory
    default: bool = True  # on by default; False = offered where the probe finds it
    portable: bool = False  # what it builds runs wherever toolchain, machine and C library are the same


class Group(Struct, frozen=True):
    """Nodes that share something; each carries the group's name as a tag."""

    name: str
    nodes: frozenset[str]
    max_jobs_per_user: int | None = None  # running at once on all of them together


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
    """What a node must do for a program, resolved for its toolchain: the input of the remote wrapper."""

    build_key: str  # hex; same key = same build
    layout: tuple[tuple[str, SourceFile], ...]  # path in the build folder -> file
    compile: tuple[tuple[str, ...], ...]  # argv lists, run inside the build folder; () = nothing to compile
    run: tuple[bytes, ...]  # argv; "{dir}" at the start of a word stands for the absolute build folder
    env: tuple[tuple[str, bytes], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()  # (name on the node, the user's name), for compiler messages
    address_space_limit: bool = False
    shared: bool = False  # a build of another node with the same key will do
    verify: str = ""  # then only once a hello of that node in this language has run here; "" = without
