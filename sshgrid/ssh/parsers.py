"""Parsers of what the scripts on a node print: first contact, the state of runs, load samples. Pure.

The formats are those of `remote/contact.sh`, `remote/node.sh` and `remote/batch.sh`. Unknown lines are ignored. A node
that lacks what runs need raises NodeUnfit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from sshgrid.errors import NodeUnfit
from sshgrid.model import Facts, Sample, Struct


class Found(Struct, frozen=True):
    """What first contact has found."""

    facts: Facts
    tools: Mapping[str, str]  # name -> absolute path
    signatures: Mapping[str, str]  # absolute path -> size, time and inode: changes when the tool changes
    checks: tuple[str, ...]  # recorded toolchain checks, one line each
    path: str  # PATH for runs


class Started(Struct, frozen=True):
    """The answer to a start: "claimed", "already", "late", "missing" or "unfit", and the rest of the line."""

    word: str
    rest: str = ""


class RunRecord(Struct, frozen=True):
    """The target of a run's rc link."""

    code: int
    stage: str  # that ended: "layout" or "start" (the program had not started), "build", "run"
    began_uptime: float
    ended_uptime: float
    cpu_seconds: float | None
    peak_memory_bytes: int | None


class RunLook(Struct, frozen=True):
    """The state of a run folder."""

    present: bool = False
    begun: bool = False  # its wrapper is or was there
    alive: bool = True  # False: the folder exists, and the wrapper has ended
    compiled: bool = False
    running: bool = False  # the program itself, not its build
    why: str = ""
    record: RunRecord | None = None
    sizes: Mapping[str, int] = {}  # "out", "err", "build.log"


class TaskEnd(Struct, frozen=True):
    """A task of a batch that has ended."""

    task: str
    lane: str
    why: str
    record: RunRecord  # its CPU time is that of all tasks of the lane up to here
    at: int  # its position in the answer, from 1
    printed: str = ""  # "o", "e" for each output that is not empty
    small: Mapping[str, bytes] = {}  # "out", "err": the content of small outputs


class BatchLook(Struct, frozen=True):
    """The state of a batch as a run, and the new records of its ledger."""

    run: RunLook
    begun: tuple[str, ...] = ()
    ended: tuple[TaskEnd, ...] = ()
    records: int = 0  # number of new records, which can be more than those of `begun` and `ended`


def parse_contact(node: str, output: bytes) -> Found:
    """Parse the output of first contact. Raises NodeUnfit when the node cannot run programs."""
    single: dict[str, str] = {}
    tools: dict[str, str] = {}
    signatures: dict[str, str] = {}
    checks: list[str] = []
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
            case "check":
                checks.append(value)
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
            gpus=int(single.get("gpus", "0")),
        )
    except (KeyError, ValueError) as error:
        raise NodeUnfit(node, f"first contact gave no usable answer ({error})") from error
    missing = sorted({"setsid", "awk"} - helpers)
    if missing:
        raise NodeUnfit(node, f"it lacks {' and '.join(missing)}", "install util-linux and an awk there")
    return Found(facts, tools, signatures, tuple(checks), single["path"])


_LISTED = re.compile(rb"^\S+\s+\d+\s+\d+\s+\d+\s+(\d+)\s+.*?\s([0-9a-f]+-b?[\d_]+\.\d+)/([a-z.]+)(?: -> (.*))?$")


def parse_poll(output: bytes, runs: Sequence[str]) -> dict[str, RunLook]:
    """Parse the answer to `poll`: `ls -ln` of the run folders, then the wrappers that have ended."""
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
    """Parse `rc=0,stage=run,began=1,ended=2,cpu=0m0.01s+0m0.00s,peak=`. Return None for another form."""
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
    """Parse the output of the shell's `times`: minutes and seconds of user and system time."""
    parts = re.findall(r"(\d+)m(\d+(?:\.\d+)?)s", text)
    return sum(int(minutes) * 60 + float(seconds) for minutes, seconds in parts) if parts else None


# --- batches

_TAR_BLOCK = 512


def parse_batch(output: bytes, batch: str) -> BatchLook:
    """Parse the answer to `batch_status`: new records and an archive of small outputs, or the answer to `poll`."""
    if not output.startswith(b"news"):
        return BatchLook(parse_poll(output, [batch])[batch])
    head, _, rest = output.partition(b"\n")
    ledger, _, archive = rest.partition(b"\nfiles\n")
    small: dict[str, dict[str, bytes]] = {}
    for path, content in _unpack(archive):
        task_of, _, name_of = path.rpartition(".")
        small.setdefault(task_of, {})[name_of] = content
    begun: list[str] = []
    ended: list[TaskEnd] = []
    records = ledger.decode("utf-8", "replace").splitlines()
    for at, line in enumerate(records, 1):
        match line.split():
            case ["begin", task, *_]:
                begun.append(task)
            case ["end", task, lane, printed, why, text, "."] if record := parse_record(text):
                why = "" if why == "-" else why
                ended.append(TaskEnd(task, lane, why, record, at, printed.strip("-"), small.get(task, {})))
    run = RunLook(present=True, begun=True, compiled=head.endswith(b" compiled"), running=True)
    return BatchLook(run, tuple(begun), tuple(ended), len(records))


_SIZED = re.compile(r"^\S+\s+\d+\s+\d+\s+\d+\s+(\d+)\s.*\s(\S+)$")


def parse_sizes(output: bytes) -> dict[str, int]:
    """Parse the answer to `file_sizes`: the size in bytes of each file."""
    lines = output.decode("utf-8", "replace").splitlines()
    return {match[2]: int(match[1]) for line in lines if (match := _SIZED.match(line))}


def _unpack(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a tar archive in ustar format (POSIX 1003.1) with names shorter than 100 bytes."""
    at = 0
    while at + _TAR_BLOCK <= len(archive) and archive[at]:
        head = archive[at : at + _TAR_BLOCK]
        size = int(head[124:136].strip(b" \0") or b"0", 8)
        at += _TAR_BLOCK
        if head[156:157] in b"0\0":
            yield head[:100].rstrip(b"\0").decode("ascii", "replace"), archive[at : at + size]
        at += -(-size // _TAR_BLOCK) * _TAR_BLOCK


class LoadMeter:
    """Turns lines of the sampler into load samples. CPU use is the difference of two lines."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._last: tuple[float, float] | None = None

    def read(self, line: bytes, at: float) -> Sample | None:
        """Return the sample of a line that arrived at this time; None for a line of another form."""
        try:
            uptime, load, busy, idle, free = map(float, line.split())
            free_bytes = int(free) * 1024
        except (ValueError, OverflowError):
            return None
        cores = self._busy_cores(busy, idle)
        return Sample(at, uptime, cores, load, free_bytes)

    def _busy_cores(self, busy: float, idle: float) -> float | None:
        before, self._last = self._last, (busy, idle)
        if before is None:
            return None
        worked, rested = busy - before[0], idle - before[1]
        if worked < 0 or rested < 0 or worked + rested <= 0:
            return None
        return self._cores * worked / (worked + rested)
