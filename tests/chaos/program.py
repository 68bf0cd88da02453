"""The program of every job in a chaos run, and its expected output, which depends only on its arguments.

It records its run in the ledger of its host, a file beside the working folder. The ledger survives a power cut, and has
its full size from the start, so that the program can write to it on a full disk. When its output does not fit on the
disk, the program waits, so that lost output is always an error of sshgrid.
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
name, seconds, lines, width, code, leaves_child = sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:7])


def uptime():
    with open("/proc/uptime") as file:
        return file.read().split()[0]


# Each run takes one slot of the ledger and overwrites it in place.
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
if leaves_child:
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
    """The arguments of the program. `name` is also the name of the job."""

    name: str
    seconds: float
    lines: int
    width: int  # characters of payload in a line
    code: int
    leaves_child: bool  # leaves a child process in its own session

    @property
    def words(self) -> list[str]:
        numbers = (self.seconds, self.lines, self.width, self.code, int(self.leaves_child))
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


def create_ledger(path: Path) -> None:
    """Create an empty ledger with its full size."""
    path.write_bytes(b"%15d\n" % 0 + b"\0" * (SLOT_BYTES * SLOTS - 16))
    path.chmod(0o666)


def read_ledger(path: Path) -> list[str]:
    """The lines of a ledger, one for each run."""
    content = path.read_bytes()
    slots = [content[at : at + SLOT_BYTES] for at in range(SLOT_BYTES, len(content), SLOT_BYTES)]
    return [line for slot in slots if (line := slot.strip(b"\0 \n").decode())]
