"""The program that every job of the torture runs, and what it has to print: a function of its arguments alone.

It notes its life in its host's ledger, a file beside the working folder that survives a power cut and was given its
whole size before the first job, so that a full disk cannot silence it. A full disk makes the program wait, as nothing
but sshgrid itself shall be found guilty of lost output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEDGER = "/var/tmp/ledger"
SLOT_BYTES = 256
SLOTS = 4096
STDERR_EVERY = 5

SOURCE = r"""
import errno, fcntl, hashlib, os, subprocess, sys, time

LEDGER, SLOT = "/var/tmp/ledger", 256
name, seconds, lines, width, code, litters = sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:7])


def uptime():
    with open("/proc/uptime") as file:
        return file.read().split()[0]


# A slot of the ledger is taken once; what stands in it is overwritten in place.
ledger = os.open(LEDGER, os.O_RDWR)
fcntl.flock(ledger, fcntl.LOCK_EX)
used = int(os.pread(ledger, 15, 0)) + 1
os.pwrite(ledger, b"%15d\n" % used, 0)
fcntl.flock(ledger, fcntl.LOCK_UN)
head = f"{name} {os.environ['SSHGRID_JOB_ID']} {os.environ['SSHGRID_ATTEMPT']} start={time.time():.3f}"
head += f" uptime={uptime()} pid={os.getpid()}"


def note(more=""):
    line = f"{head} beat={time.time():.3f}{more}"
    os.pwrite(ledger, line.encode().ljust(SLOT - 1) + b"\n", used * SLOT)


def put(descriptor, piece):
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest):]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            note()
            time.sleep(0.05)


def wait_until(at):
    while (rest := at - time.monotonic()) > 0:
        note()
        time.sleep(min(rest, 0.1))


note()
if litters:
    null = subprocess.DEVNULL
    subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=null, stdout=null, stderr=null)
began = time.monotonic()
total = hashlib.sha256()
for number in range(1, lines + 1):
    wait_until(began + seconds * number / lines)
    digest = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
    line = f"{name} {number} {(digest * (width // 64 + 1))[:width]}\n".encode()
    total.update(line)
    put(1, line)
    if number % 5 == 0:
        put(2, f"{name} err {number}\n".encode())
put(1, f"{name} sum {total.hexdigest()}\n".encode())
note(f" end={time.time():.3f} uptime={uptime()} code={code}")
os._exit(code)
"""


@dataclass(frozen=True)
class Job:
    """One run of the program. `name` is what `ps` calls it, too."""

    name: str
    seconds: float
    lines: int
    width: int  # characters of payload in a line
    code: int
    litters: bool  # leaves a child in a session of its own behind

    @property
    def words(self) -> list[str]:
        numbers = (self.seconds, self.lines, self.width, self.code, int(self.litters))
        return [self.name, *map(str, numbers)]

    def _lines(self) -> Iterator[bytes]:
        for number in range(1, self.lines + 1):
            digest = hashlib.sha256(f"{self.name} {number}".encode()).hexdigest()
            yield f"{self.name} {number} {(digest * (self.width // 64 + 1))[: self.width]}\n".encode()

    @property
    def stdout(self) -> bytes:
        text = b"".join(self._lines())
        return text + f"{self.name} sum {hashlib.sha256(text).hexdigest()}\n".encode()

    @property
    def stderr(self) -> bytes:
        numbers = range(STDERR_EVERY, self.lines + 1, STDERR_EVERY)
        return b"".join(f"{self.name} err {number}\n".encode() for number in numbers)


def lay_ledger(path: Path) -> None:
    """An empty ledger that already has all the space it will ever need."""
    path.write_bytes(b"%15d\n" % 0 + b"\0" * (SLOT_BYTES * SLOTS - 16))
    path.chmod(0o666)


def read_ledger(path: Path) -> list[str]:
    """The lines of a ledger, one for each run that began."""
    content = path.read_bytes()
    slots = [content[at : at + SLOT_BYTES] for at in range(SLOT_BYTES, len(content), SLOT_BYTES)]
    return [line for slot in slots if (line := slot.strip(b"\0 \n").decode())]
