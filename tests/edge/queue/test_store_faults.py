"""The queue under faults: files that it refuses, full disks, kills, and several processes at once."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from sshgrid.errors import StoreError
from sshgrid.model import Exited, JobId, Phase, Program, SourceFile, Submission
from sshgrid.queue import database
from sshgrid.queue.store import Store
from sshgrid.spool import disk

HELLO = Submission(Program("c", "hello.c", (SourceFile("hello.c", "a" * 64, 20),)), "hello.c")
ROOT = Path(__file__).parents[3]
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "queue.db"


@pytest.fixture
def closed(path: Path) -> Path:
    """A valid queue with one job, closed."""
    with Store.open(path) as store:
        store.add(HELLO, "ana", "k", 1.0)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def refused(path: Path, **options: float) -> StoreError:
    with pytest.raises(StoreError) as caught:
        Store.open(path, **options)
    assert str(path.parent) in caught.value.message
    assert caught.value.hint
    return caught.value


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql)


HEAD = """
import os, sys, msgspec
from pathlib import Path
from sshgrid.model import *
from sshgrid.queue.store import Store
HELLO = Submission(Program("c", "hello.c", (SourceFile("hello.c", "a" * 64, 20),)), "hello.c")
"""


def python(program: str, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """Start a process that runs `program` after HEAD, with these arguments."""
    command = [sys.executable, "-c", HEAD + program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


# --- files that are refused when opened -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"not a database", b"\0" * 8192, os.urandom(8192)])
def test_a_file_that_is_not_a_queue_is_refused_and_not_changed(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    path.chmod(0o600)
    assert "not a queue of sshgrid" in refused(path).message
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_not_changed(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    change(path, "CREATE TABLE theirs (x)")
    path.chmod(0o600)
    before = path.read_bytes()
    assert "not a queue of sshgrid" in refused(path).message
    assert path.read_bytes() == before


def test_a_damaged_page_is_found_when_the_queue_is_opened(closed: Path) -> None:
    with closed.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 3)
    assert "damaged" in refused(closed).message


def test_a_truncated_queue_is_refused(closed: Path) -> None:
    os.truncate(closed, closed.stat().st_size // 2)
    assert "damaged" in refused(closed).message


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE submission SET body = '{}'",
        "UPDATE job SET excluded = 'nonsense'",
        "DELETE FROM submission",
        "UPDATE job SET phase = 'done', verdict = '{\"type\": \"unknown\"}'",
    ],
)
def test_a_job_that_cannot_be_read_is_a_store_error(closed: Path, harm: str) -> None:
    change(closed, harm)
    with Store.open(closed) as store, pytest.raises(StoreError, match=r"damaged.* job 1"):
        store.jobs.select()


def test_a_queue_without_the_name_of_its_grid_is_refused(closed: Path) -> None:
    change(closed, "DELETE FROM meta WHERE name = 'grid'")
    assert "damaged: grid is missing" in refused(closed).message


def test_a_refused_queue_is_closed(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(closed, "DELETE FROM meta WHERE name = 'grid'")
    opened: list[sqlite3.Connection] = []
    open_file = database.open_file

    def remember(path: Path, busy_seconds: float) -> sqlite3.Connection:
        opened.append(open_file(path, busy_seconds))
        return opened[-1]

    monkeypatch.setattr(database, "open_file", remember)
    refused(closed)
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        opened[0].execute("SELECT 1")


def test_a_newer_queue_is_refused_and_the_hint_names_the_required_version(closed: Path) -> None:
    change(closed, "PRAGMA user_version = 7")
    change(closed, "UPDATE meta SET value = '3.1.0' WHERE name = 'needs'")
    error = refused(closed)
    assert f"newer sshgrid (queue version 7; this sshgrid supports up to {database.VERSION})" in error.message
    assert error.hint == "install sshgrid 3.1.0 or newer"
    change(closed, "DROP TABLE meta")
    assert refused(closed).hint == "install sshgrid newer than 0.1.0"


def test_a_locked_queue_is_refused_after_a_wait(closed: Path) -> None:
    with closing(sqlite3.connect(closed, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        assert "locked by another process" in refused(closed, busy_seconds=0.05).message


def test_a_change_that_waits_too_long_for_another_writer_is_a_store_error(closed: Path) -> None:
    with (
        Store.open(closed, busy_seconds=0.05) as store,
        closing(sqlite3.connect(closed, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked by another process"):
            store.add(HELLO, "ana", "k2", 1.0)
        assert len(store.jobs.select()) == 1
        other.execute("ROLLBACK")
        assert store.add(HELLO, "ana", "k2", 1.0).id == 2


def test_A40_files_and_folders_of_the_queue_are_private_under_any_umask(tmp_path: Path) -> None:
    for mask in (0o000, 0o022, 0o077, 0o777):
        path = tmp_path / f"{mask:o}" / "deep" / "queue.db"
        before = os.umask(mask)
        try:
            with Store.open(path) as store:
                store.add(HELLO, "ana", "k", 1.0)
                store.backup(path.with_name("copy.db"))
                modes = {entry.name: entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}
        finally:
            os.umask(before)
        assert modes == dict.fromkeys(["queue.db", "queue.db-wal", "queue.db-shm", "copy.db"], 0o600)
        assert [folder.stat().st_mode & 0o777 for folder in (path.parent, path.parents[1])] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
@pytest.mark.parametrize("name", ["queue.db", "queue.db-wal"])
def test_A40_a_queue_that_others_can_read_is_refused(closed: Path, mode: int, name: str) -> None:
    file = closed.with_name(name)
    file.touch()
    file.chmod(mode)
    error = refused(closed)
    assert "by others" in error.message
    assert error.hint == f"chmod 600 {file}"


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_A40_a_folder_that_others_can_write_is_refused(closed: Path, mode: int) -> None:
    closed.parent.chmod(mode)
    error = refused(closed)
    assert "can be written by others" in error.message
    assert error.hint == f"chmod 700 {closed.parent}"


def test_a_link_or_a_folder_in_place_of_the_queue_is_refused(closed: Path) -> None:
    link = closed.with_name("link.db")
    link.symlink_to(closed)
    assert "not a plain file" in refused(link).message
    folder = closed.with_name("folder.db")
    folder.mkdir(mode=0o700)
    assert "not a plain file" in refused(folder).message


def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert "not a directory" in refused(tmp_path / "state" / "queue.db").message
    with pytest.raises(StoreError, match=r"Not a directory"):
        Store.open(tmp_path / "state" / "deeper" / "queue.db")


def test_a_write_ahead_log_without_its_queue_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.with_name("queue.db-wal").touch()
    assert "its write-ahead log queue.db-wal does" in refused(path).message
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize(("mode", "owner", "words"), [(0o500, NOBODY, "not writable"), (0o755, 0, "another user")])
def test_a_folder_that_is_not_writable_is_refused(mode: int, owner: int, words: str) -> None:
    place = Path(tempfile.mkdtemp())  # the user nobody cannot enter the folders of pytest
    try:
        os.chown(place, owner, owner)
        place.chmod(mode)
        child = os.fork()
        if child == 0:
            os.setuid(NOBODY)
            try:
                os._exit(0 if words in refused(place / "queue.db").message else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert list(place.iterdir()) == []
    finally:
        shutil.rmtree(place)


MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:35 / /home rw shared:9 - nfs4 server:/home rw
41 40 0:36 / /home/ana/local\040disk rw - xfs /dev/vdb rw
42 22 0:37 / /mnt rw - ext4 /dev/vdc rw
43 42 0:38 / /mnt rw - fuse.sshfs ana@host: rw
broken line
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib", "ext4"),
        ("/home", "nfs4"),
        ("/home/ana/x", "nfs4"),
        ("/homes", "ext4"),
        ("/home/ana/local disk/state", "xfs"),
        ("/mnt/state", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_nearest_and_newest_mount(place: str, kind: str) -> None:
    assert disk.filesystem_of(MOUNTS, place) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "9p"])
def test_F36_a_state_folder_on_a_network_file_system_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {os.path.realpath(path.parent)} rw - {kind} x rw\n")
    monkeypatch.setattr(disk, "MOUNTINFO", mounts)
    error = refused(path)
    assert f"network file system ({kind})" in error.message
    assert "--state-dir" in error.hint
    assert not path.exists()


def test_a_queue_opens_when_the_mount_table_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disk, "MOUNTINFO", tmp_path / "none")
    Store.open(path).close()


# --- while it is open -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
def test_a_queue_that_was_deleted_or_replaced_accepts_no_job(closed: Path, replaced: bool) -> None:
    with Store.open(closed) as store:
        copy = closed.with_name("copy.db")
        store.backup(copy)
        copy.replace(closed) if replaced else closed.unlink()
        with pytest.raises(StoreError, match=r"was removed or replaced"):
            store.add(HELLO, "ana", "k2", 1.0)


def test_a_full_disk_is_a_store_error_and_loses_no_job(small_disk: Path) -> None:
    path = small_disk / "queue.db"
    with Store.open(path) as store:
        kept = [store.add(HELLO, "ana", f"k{number}", 1.0).id for number in range(20)]
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(b"x" * 2**20)
        with pytest.raises(StoreError, match=r"queue\.db: (no space|the disk reports)") as caught:
            _fill(store, kept)
        assert "df -h" in caught.value.hint
        assert store.jobs.ids() == kept
        ballast.unlink()
        kept.append(store.add(HELLO, "ana", "after", 1.0).id)
    with Store.open(path) as store:
        assert store.jobs.ids() == kept


def _fill(store: Store, kept: list[JobId]) -> None:
    while True:
        kept.append(store.add(HELLO, "ana", f"more{len(kept)}", 1.0).id)


def test_a_new_queue_on_a_full_disk_is_a_store_error_and_leaves_no_file(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (1024 * 1024 - 8192))
    assert refused(small_disk / "queue.db").message.startswith(str(small_disk))
    assert [entry.name for entry in small_disk.iterdir()] == ["ballast"]


# --- several processes ------------------------------------------------------------------------------------------------

CLAIM = """
store, me = Store.open(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
while waiting := store.jobs.queued():
    for job in waiting:
        if attempt := store.attempts.begin(job.id, me, 1.0):
            record = msgspec.structs.replace(AttemptRecord(attempt.number, me, 1.0), outcome=Exited(0), ended=2.0)
            after = msgspec.structs.replace(store.jobs.get(job.id), phase=Phase.DONE, verdict=Exited(0), ended=2.0)
            assert store.attempts.settle(attempt, record, after)
            print(attempt, flush=True)
"""


def test_F42_several_processes_claim_each_job_once_without_a_lock_error(path: Path) -> None:
    with Store.open(path) as store, store.transaction():
        jobs = [store.add(HELLO, "ana", f"k{number}", 1.0).id for number in range(300)]
    workers = [python(CLAIM, path, f"n{n}", stdin=subprocess.PIPE, stderr=subprocess.PIPE) for n in range(4)]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    answers = [worker.communicate(timeout=60) for worker in workers]
    assert [(worker.returncode, errors) for worker, (_, errors) in zip(workers, answers, strict=True)] == [(0, b"")] * 4
    claimed = Counter(line for lines, _ in answers for line in lines.decode().split())
    assert claimed == Counter(f"{job}.1" for job in jobs)
    with Store.open(path) as store:
        assert store.jobs.tally() == [(Phase.DONE, Exited(0), 300)]


def test_two_processes_that_make_the_queue_at_once_share_it(path: Path) -> None:
    program = "sys.stdin.readline(); print(Store.open(Path(sys.argv[1])).grid)"
    for round_number in range(3):
        place = path.parent / str(round_number) / "queue.db"
        workers = [python(program, place, stdin=subprocess.PIPE) for _ in range(4)]
        names = {worker.communicate(b"go\n", timeout=60)[0] for worker in workers}
        assert [worker.returncode for worker in workers] == [0] * 4
        assert len(names) == 1
        assert [entry.name for entry in place.parent.iterdir()] == ["queue.db"]


# --- kills ------------------------------------------------------------------------------------------------------------

ACKNOWLEDGE = """
store = Store.open(Path(sys.argv[1]))
for number in range(100_000):
    job = store.add(HELLO, "ana", f"{sys.argv[2]}-{number}", 1.0)
    os.write(1, b"added %d\\n" % job.id)
    attempt = store.attempts.begin(job.id, "n1", 1.0)
    os.write(1, b"begun %d\\n" % job.id)
    record = msgspec.structs.replace(AttemptRecord(1, "n1", 1.0), outcome=Exited(0), ended=2.0)
    store.attempts.settle(attempt, record, msgspec.structs.replace(job, phase=Phase.DONE, verdict=Exited(0), ended=2.0))
    os.write(1, b"settled %d\\n" % job.id)
"""


def killed_after(path: Path, round_number: int, lines: int) -> list[list[str]]:
    """Run ACKNOWLEDGE, send SIGKILL after `lines` answers, and return all answers."""
    process = python(ACKNOWLEDGE, path, round_number)
    assert process.stdout
    answers = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    answers += process.stdout.readlines()
    process.stdout.close()
    assert process.wait(timeout=30) == -signal.SIGKILL
    return [line.decode().split() for line in answers if line.endswith(b"\n")]


def test_F15_acknowledged_changes_survive_twenty_kills(path: Path) -> None:
    rng = Random(15)
    rank = {"added": 0, "begun": 1, "settled": 2}
    promised: dict[int, int] = {}
    for round_number in range(20):
        for word, job_id in killed_after(path, round_number, rng.randrange(1, 60)):
            promised[int(job_id)] = rank[word]
        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with Store.open(path) as store:
            found = {job.id: list(Phase).index(job.phase) for job in store.jobs.select()}
            assert {job_id: phase for job_id, phase in promised.items() if found.get(JobId(job_id), -1) < phase} == {}
            assert all(len(job.attempts) == (job.phase is not Phase.QUEUED) for job in store.jobs.select())
            assert (
                len(found) <= len(promised) + round_number + 1
            )  # each kill may leave one job that was stored but not printed
    assert len(promised) > 20


def _seen(pattern: str, folder: Path) -> None:
    deadline = time.monotonic() + 20
    while not list(folder.glob(pattern)) and not (folder / "state/queue.db").exists():  # the creation has ended already
        assert time.monotonic() < deadline, f"no {pattern} in {folder}: {list(folder.parent.rglob('*'))}"


@pytest.mark.parametrize("moment", ["state", "state/.queue.db.*", "state/.queue.db.*-wal", "state/queue.db"])
def test_a_kill_during_creation_leaves_a_complete_queue_or_none(path: Path, moment: str) -> None:
    process = python("Store.open(Path(sys.argv[1])); sys.stdin.read()", path, stdin=subprocess.PIPE)
    _seen(moment, path.parents[1])
    process.kill()
    process.communicate(timeout=30)
    with Store.open(path) as store:
        assert store.jobs.ids() == []
        assert len(store.grid) == 8
