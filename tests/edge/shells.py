"""A node without SSH: the scripts of sshgrid/remote run by a chosen shell, as the connection would run them.

Every call starts a new shell, as the functions share nothing but files. The runs of a test have their own grid name, so
that processes they leave are found. A test fails that ends while a process of its runs exists.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TypedDict, Unpack

import msgspec

from sshgrid.engines.jobscript import job_script, tasks_script
from sshgrid.engines.launch import RunSpec, batch_name, make_batch, needed, needed_by, run_name
from sshgrid.model import Attempt, Facts, JobId, Limits, Program, Recipe, SourceFile
from sshgrid.ssh.parsers import BatchLook, Found, RunLook, TaskEnd, parse_batch, parse_contact, parse_poll
from tests.lab.machine import argv_of, is_alive, uptime, wait_until

REMOTE = resources.files("sshgrid") / "remote"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
# The program, and the name by which it is called.
SHELLS: Mapping[str, tuple[str, str]] = {
    "dash": ("dash", "dash"),
    "bash": ("bash", "bash"),
    "posix": ("bash", "sh"),  # bash that is called sh is in POSIX mode
    "busybox": ("busybox", "sh"),
}
PATIENCE_SECONDS = 20.0


def missing_shell(name: str) -> str:
    program = SHELLS[name][0]
    return "" if shutil.which(program, path=PATH) else f"{program} is not installed here"


def bare_shell(folder: Path, name: str) -> tuple[Path, str]:
    """Return a shell under the name by which it is called, and its PATH: with busybox, only its applets."""
    program, called = SHELLS[name]
    found = shutil.which(program, path=PATH) or ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / called).symlink_to(found)
    if program != "busybox":
        return folder / called, PATH
    applets = folder / "applets"
    applets.mkdir()
    subprocess.run([found, "--install", "-s", applets], check=True)
    return folder / called, str(applets)


class How(TypedDict, total=False):
    """What a run may have beside its program's text."""

    compiler: tuple[tuple[str, ...], ...]
    run: tuple[bytes, ...]
    stdin: bytes
    env: Mapping[str, bytes]
    limits: Limits
    data: Mapping[str, bytes]


def make_order(
    keep: Callable[[bytes], str], grid: str, number: int, source: bytes, args: tuple[bytes, ...], **how: Unpack[How]
) -> RunSpec:
    """Return an attempt at a program of one file, `p.sh`; `keep` stores bytes and returns their digest."""
    file = SourceFile("p.sh", keep(source), len(source))
    stdin = how.get("stdin")
    compiler = how.get("compiler", ())
    program = Program(
        "sh",
        file.name,
        (file,),
        args,
        tuple(how.get("env", {}).items()),
        None if stdin is None else SourceFile("stdin", keep(stdin), len(stdin)),
        limits=how.get("limits", Limits()),
        data=tuple(
            SourceFile(name, keep(content), len(content), content.startswith(b"#!"))
            for name, content in how.get("data", {}).items()
        ),
    )
    key = hashlib.sha256(source + repr(compiler).encode()).hexdigest()
    recipe = Recipe(key, ((file.name, file),), compiler, (*how.get("run", (b"/bin/sh", b"{dir}/p.sh")), *args))
    attempt = Attempt(JobId(number), 1, "n1")
    return RunSpec(attempt, run_name(grid, attempt), program, recipe)


class ShellNode:
    """One working folder, one shell, one isolation ("session", "pidns", or "" = the best that works)."""

    def __init__(self, folder: Path, shell: str, isolation: str = "", workdir: Path | None = None) -> None:
        program, name = SHELLS[shell]
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sh = folder / "shell" / name
        self.sh.parent.mkdir()
        self.sh.symlink_to(shutil.which(program, path=PATH) or "")
        self.path = self._applets() if shell == "busybox" else PATH
        self.workdir = workdir or folder / "w"
        self.grid = secrets.token_hex(4)
        self.found = self.contact()
        self.facts: Facts = self.found.facts
        if isolation and isolation != self.facts.isolation:
            if isolation == "pidns":
                raise LookupError("no pid namespace can be had here")
            self.facts = msgspec.structs.replace(self.facts, isolation=isolation)
        self.library = self.workdir / "bin" / "node.sh"
        # On this node /bin/sh is the shell under test.
        for name in ("node.sh", "batch.sh"):
            text = (REMOTE / name).read_text().replace("/bin/sh", str(self.sh))
            self.library.with_name(name).write_text(text)
        self._jobs = 0

    def _applets(self) -> str:
        """Return the PATH of a machine with busybox and nothing else."""
        folder = self.folder / "applets"
        folder.mkdir()
        subprocess.run([shutil.which("busybox", path=PATH) or "", "--install", "-s", folder], check=True)
        return str(folder)

    # --- shells

    def script(self, text: bytes, seconds: float = PATIENCE_SECONDS) -> subprocess.CompletedProcess[bytes]:
        """Run a shell that reads its commands from standard input, like the one of a connection."""
        return subprocess.run(
            [self.sh], input=text, capture_output=True, check=False, env=self._environment(), timeout=seconds
        )

    def contact(self, *tools: str, workdir: str = "") -> Found:
        return parse_contact("n1", self.contact_words(*tools, workdir=workdir))

    def contact_words(self, *tools: str, workdir: str = "") -> bytes:
        words = [workdir or str(self.workdir), "node.sh", *tools]
        script = '. "$0"'
        return self._run(script, str(REMOTE / "contact.sh"), *words).stdout

    def verb(self, *words: str, stdin: bytes = b"", seconds: float = PATIENCE_SECONDS) -> bytes:
        done = self._run(self.variables() + '. "$LIB"; "$@"', "sh", *words, stdin=stdin, seconds=seconds)
        assert not done.stderr, done.stderr
        return done.stdout

    def variables(self) -> str:
        fork = int("setsid-fork" in self.facts.helpers)
        return (
            f"W='{self.workdir}'; LIB='{self.library}'; BOOT='{self.facts.boot_id}'; ISOLATION={self.facts.isolation}; "
            f"SETSID_FORK={fork}; SHA256SUM={int('sha256sum' in self.facts.helpers)}; "
        )

    def _run(
        self, script: str, *words: str, stdin: bytes = b"", seconds: float = PATIENCE_SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.sh, "-c", script, *words],
            input=stdin,
            capture_output=True,
            check=False,
            env=self._environment(),
            timeout=seconds,
        )

    def _environment(self) -> dict[str, str]:
        return {"PATH": self.path, "HOME": str(self.folder), "LANG": "C.UTF-8"}

    # --- runs

    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.workdir / "objects" / sha256).write_bytes(content)
        return sha256

    def order(self, source: bytes, *args: bytes, **how: Unpack[How]) -> RunSpec:
        """Return a run of a program of one file, by default a sh script; each call returns another run."""
        self._jobs += 1
        return make_order(self.put, self.grid, self._jobs, source, args, **how)

    def start(
        self,
        order: RunSpec,
        *,
        verb: str = "start",
        not_after: float | None = None,
        objects: Sequence[str] | None = None,
        lease: float | None = None,
    ) -> str:
        guard = str(int(uptime() + 15 if not_after is None else not_after))
        inputs = " ".join(needed(order)) or "-"
        wanted = [file.sha256 for _, file in order.recipe.layout] if objects is None else objects
        words = (verb, order.run, guard, order.recipe.build_key, inputs, *wanted)
        return self.verb(*words, stdin=job_script(order, self.facts, lease)).decode().strip()

    def start_batch(
        self, orders: Sequence[RunSpec], *, not_after: float | None = None, lease: float | None = None
    ) -> str:
        """Start a batch. Return its name."""
        batch = make_batch(orders)
        assert self.start(batch, not_after=not_after, lease=lease) == f"claimed {batch.run}"
        return batch.run

    def batch_status(self, batch: str) -> BatchLook:
        """Return the state of the batch as a run, with its whole ledger."""
        begun, ended, records = list[str](), list[TaskEnd](), 0
        while (look := self.news_of_batch(batch, records)).records:
            begun, ended, records = [*begun, *look.begun], [*ended, *look.ended], records + look.records
        return BatchLook(look.run, tuple(begun), tuple(ended), records)

    def news_of_batch(self, batch: str, records: int) -> BatchLook:
        script = self.variables() + '. "$LIB"; . "${LIB%/*}/batch.sh"; "$@"'
        words = ("batch_status", batch, str(records), "5000", "8")
        done = self._run(script, "sh", *words)
        assert not done.stderr, done.stderr
        return parse_batch(done.stdout, batch)

    def batch_verb(self, *words: str, stdin: bytes = b"") -> str:
        script = self.variables() + '. "$LIB"; . "${LIB%/*}/batch.sh"; "$@"'
        return self._run(script, "sh", *words, stdin=stdin).stdout.decode().strip()

    def add_tasks(self, batch: str, part: int, orders: Sequence[RunSpec], *, not_after: float | None = None) -> str:
        """Add tasks to a batch. Return the node's answer."""
        guard = str(int(uptime() + 15 if not_after is None else not_after))
        words = ("add_tasks", batch, guard, " ".join(needed_by(orders)) or "-", str(part), str(len(orders)))
        return self.batch_verb(*words, stdin=tasks_script(batch, orders))

    def ended_batch(self, batch: str, seconds: float = PATIENCE_SECONDS) -> BatchLook:
        look = BatchLook(RunLook())

        def over() -> bool:
            nonlocal look
            look = self.batch_status(batch)
            return look.run.record is not None or not look.run.alive

        wait_until(over, f"the end of {batch}", seconds, lambda: (look, self.log_of(batch)))
        return look

    def run_batch(self, orders: Sequence[RunSpec]) -> Mapping[str, TaskEnd]:
        """Run a batch to its record. Return the ends of the tasks by name. Each begins and ends once."""
        look = self.ended_batch(self.start_batch(orders))
        assert look.run.record, self.log_of(batch_name(orders[0].run))
        assert len(look.begun) == len(set(look.begun))
        assert len(look.ended) == len({end.task for end in look.ended})
        return {end.task: end for end in look.ended}

    def log_of(self, batch: str) -> str:
        return (self.workdir / "runs" / batch / "wrapper.log").read_text()

    def run(self, order: RunSpec, seconds: float = PATIENCE_SECONDS) -> RunLook:
        """Run to the record."""
        assert self.start(order) == f"claimed {order.run}"
        return self.ended(order, seconds)

    def look(self, run: str) -> RunLook:
        return parse_poll(self.verb("poll", run), [run])[run]

    def ended(self, order: RunSpec, seconds: float = PATIENCE_SECONDS) -> RunLook:
        look = RunLook()

        def over() -> bool:
            nonlocal look
            look = self.look(order.run)
            return look.record is not None or not look.alive

        wait_until(over, f"the end of {order.run}", seconds, lambda: (look, self.log(order)))
        return look

    def is_running(self, order: RunSpec, words: str = "") -> None:
        """Wait until the program runs and has printed these words."""
        wait_until(
            lambda: self.look(order.run).running and words.encode() in self.read(order, "out"),
            f"{order.run} to say {words!r}",
            PATIENCE_SECONDS,
            lambda: (self.look(order.run), self.read(order, "out"), self.read(order, "err"), self.log(order)),
        )

    def dir(self, order: RunSpec) -> Path:
        return self.workdir / "runs" / order.run

    def read(self, order: RunSpec, name: str) -> bytes:
        path = self.dir(order) / name
        return path.read_bytes() if path.exists() else b""

    def log(self, order: RunSpec) -> str:
        return self.read(order, "wrapper.log").decode(errors="replace")

    def link(self, order: RunSpec, name: str) -> str:
        path = self.dir(order) / name
        return str(path.readlink()) if path.is_symlink() else ""

    def pid(self, order: RunSpec, name: str = "pid") -> int:
        """The process that the link `pid` (the wrapper) or `child` (the program's group) names."""
        return int(self.link(order, name).partition(",")[0].removeprefix("pid="))

    # --- what is left

    def processes(self, run: str = "") -> dict[int, str]:
        """Return processes with a run of this node in the environment, or the working folder in the command line."""
        return {pid: " ".join(argv_of(pid)) for pid in _pids() if is_alive(pid) and self._is_ours(pid, run)}

    def _is_ours(self, pid: int, run: str) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        mark = f"SSHGRID_RUN={run}/" if run else f"SSHGRID_RUN={self.grid}-"
        return mark.encode() in environment or f"{self.workdir}/runs/{run}" in " ".join(argv_of(pid))

    def end(self) -> None:
        """End all processes of this node. Raises AssertionError when `clean` would have left some."""
        runs = self.verb("runs_of", self.grid).decode().split()
        if runs:
            assert self.verb("clean", *runs) == b""
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left
        assert not any((self.workdir / "runs").iterdir())
        assert not list((self.workdir / "builds").glob(".*"))


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
