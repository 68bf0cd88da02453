"""Acknowledged changes survive a power cut of the master's machine.

The state is on an ext4 image. A writer is killed, and the image is copied at once: the copy has what was written to the
disk, not what was only in memory. Then the copy is mounted and read.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from sshgrid.model import JobId, Phase
from sshgrid.queue.store import Store
from sshgrid.spool.spool import Spool

ROOT = Path(__file__).parents[3]
TOOLS = ("mkfs.ext4", "mount", "umount")

WRITER = """
import os, sys, msgspec
from pathlib import Path
from sshgrid.model import *
from sshgrid.spool.spool import Spool
from sshgrid.queue.store import Store
change = msgspec.structs.replace
place = Path(sys.argv[1])
store, spool = Store.open(place / "queue.db"), Spool(place / "spool")
for number in range(100_000):
    source = b"source %d\\n" % number
    file = SourceFile("a.c", spool.blobs.keep(source), len(source))
    job = store.add(Submission(Program("c", "a.c", (file,)), "a.c"), "ana", str(number), 1.0)
    os.write(1, b"added %d\\n" % job.id)
    attempt = store.attempts.begin(job.id, "n1", 1.0)
    os.write(1, b"begun %d\\n" % job.id)
    spool.outputs.append(job.id, 1, "stdout", b"output of %d\\n" % job.id * 50)
    spool.outputs.sync([(job.id, 1)])
    record = AttemptRecord(1, "n1", 1.0, outcome=Exited(0), ended=2.0)
    store.attempts.settle(attempt, record, change(job, phase=Phase.DONE, verdict=Exited(0), ended=2.0))
    os.write(1, b"settled %d\\n" % job.id)
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"needs root and {', '.join(TOOLS)}")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(32 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    return image


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    place = image.with_suffix(".mounted")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        place.chmod(0o700)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def write_until_power_cut(image: Path, answer_count: int) -> tuple[list[list[str]], Path]:
    """Run WRITER until it has given `answer_count` answers, then cut the power. Returns the answers and the image."""
    after = image.with_name("after.img")
    with mounted(image) as place:
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(place)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout
        answers = [process.stdout.readline() for _ in range(answer_count)]
        process.send_signal(signal.SIGKILL)
        answers += process.stdout.readlines()
        process.stdout.close()
        process.wait(timeout=30)
        shutil.copyfile(image, after)
    return [line.decode().split() for line in answers if line.endswith(b"\n")], after


def check(place: Path, promised: dict[JobId, str]) -> None:
    with closing(sqlite3.connect(place / "queue.db")) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with Store.open(place / "queue.db") as store, Spool(place / "spool") as spool:
        jobs = {job.id: job for job in store.jobs.select()}
        assert promised.keys() - jobs.keys() == set()
        assert spool.blobs.missing(store.jobs.blobs()) == ()
        assert all(spool.blobs.read(digest).startswith(b"source ") for digest in store.jobs.blobs())
        for job_id, word in promised.items():
            least = {"added": Phase.QUEUED, "begun": Phase.RUNNING, "settled": Phase.DONE}[word]
            assert list(Phase).index(jobs[job_id].phase) >= list(Phase).index(least)
        for job_id in (job.id for job in jobs.values() if job.phase is Phase.DONE):
            assert spool.outputs.read(job_id, 1, "stdout", 0, 10_000) == b"output of %d\n" % job_id * 50


@pytest.mark.parametrize("seed", range(4))
def test_F15_an_acknowledged_job_its_files_and_its_output_survive_a_power_cut(image: Path, seed: int) -> None:
    answers, after = write_until_power_cut(image, Random(seed).randrange(20, 200))
    with mounted(after) as place:
        check(place, {JobId(int(job_id)): word for word, job_id in answers})
