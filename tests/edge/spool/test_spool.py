"""The spool on a real disk: files by digest, and output that only grows."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshgrid.errors import StoreError, UsageError
from sshgrid.model import STREAMS, JobId
from sshgrid.spool import disk
from sshgrid.spool.blobs import FEW_FILES, HOUR, MOST_TOGETHER, Blobs
from sshgrid.spool.outputs import MAX_OPEN
from sshgrid.spool.spool import Spool

ROOT = Path(__file__).parents[3]
ONE, TWO = JobId(1), JobId(2)
CONTENT = b"int main(void) { return 0; }\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as opened:
        yield opened


def everything(spool: Spool) -> list[str]:
    return sorted(str(path.relative_to(spool.directory)) for path in spool.directory.rglob("*") if path.is_file())


def calls_of(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Record these calls of os with the path of their first argument."""
    calls: list[str] = []

    def watched(name: str, real: Callable[..., object], *arguments: Any) -> object:
        first = arguments[0]
        calls.append(f"{name} {Path(f'/proc/self/fd/{first}').readlink() if isinstance(first, int) else first}")
        return real(*arguments)

    for name in names:
        monkeypatch.setattr(os, name, partial(watched, name, getattr(os, name)))
    return calls


# --- files by digest --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_file_sent_in_pieces_is_stored_under_its_digest(spool: Spool, piece: int) -> None:
    writer = spool.blobs.writer(DIGEST, len(CONTENT))
    for start in range(0, len(CONTENT), piece):
        assert not spool.blobs.has(DIGEST)
        writer.append(CONTENT[start : start + piece])
    path = writer.finish()
    assert path == spool.blobs.path(DIGEST) == spool.directory / "blobs" / DIGEST[:2] / DIGEST
    assert (path.read_bytes(), spool.blobs.read(DIGEST)) == (CONTENT, CONTENT)
    assert everything(spool) == [f"blobs/{DIGEST[:2]}/{DIGEST}"]


def test_without_an_announced_size_only_the_digest_is_checked(spool: Spool) -> None:
    for digest in (DIGEST, "0" * 64):
        writer = spool.blobs.writer(digest)
        writer.append(CONTENT)
        if digest == DIGEST:
            assert writer.finish().read_bytes() == CONTENT
        else:
            with pytest.raises(UsageError, match=r"the received bytes have SHA-256"):
                writer.finish()
    assert everything(spool) == [f"blobs/{DIGEST[:2]}/{DIGEST}"]


def test_empty_file_is_stored(spool: Spool) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    assert spool.blobs.writer(digest, 0).finish().read_bytes() == b""
    assert spool.blobs.keep(b"") == digest


@pytest.mark.parametrize(
    ("digest", "size", "words"),
    [
        ("0" * 64, len(CONTENT), "the received bytes have SHA-256"),
        (DIGEST, len(CONTENT) + 1, "29 bytes received, 30 announced"),
        (DIGEST, len(CONTENT) - 1, "more than the announced 28 bytes"),
        (DIGEST, -1, "more than the announced -1 bytes"),
    ],
)
def test_F25_file_that_differs_from_its_announcement_leaves_nothing(
    spool: Spool, digest: str, size: int, words: str
) -> None:
    writer = spool.blobs.writer(digest, size)
    with pytest.raises(UsageError, match=words):
        writer.append(CONTENT) or writer.finish()  # type: ignore[func-returns-value]
    assert not spool.blobs.has(digest)
    assert everything(spool) == []


def test_aborted_file_is_removed_and_finished_file_stays(spool: Spool) -> None:
    with spool.blobs.writer(DIGEST, len(CONTENT)) as writer:
        writer.append(CONTENT[:5])
    assert everything(spool) == []
    with spool.blobs.writer(DIGEST, len(CONTENT)) as writer:
        writer.append(CONTENT)
        writer.finish()
        writer.abort()
    assert spool.blobs.has(DIGEST)


def test_two_clients_can_send_the_same_file_at_the_same_time(spool: Spool) -> None:
    writers = [spool.blobs.writer(DIGEST, len(CONTENT)) for _ in range(2)]
    for writer in writers:
        writer.append(CONTENT)
    assert [writer.finish().read_bytes() for writer in writers] == [CONTENT] * 2
    assert len(everything(spool)) == 1


def test_file_of_another_size_is_compared_without_reading_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be larger than the memory, and any user who knows its digest can ask."""
    spool.blobs.keep(CONTENT)
    assert spool.blobs.holds(DIGEST, CONTENT)
    monkeypatch.setattr(Blobs, "read", lambda _, sha256: pytest.fail(f"{sha256} was read"))
    assert not spool.blobs.holds(DIGEST, CONTENT[:1])


def test_damaged_file_is_repaired_by_sending_it_again(spool: Spool) -> None:
    spool.blobs.keep(CONTENT)
    spool.blobs.path(DIGEST).write_bytes(b"rubbish")
    writer = spool.blobs.writer(DIGEST, len(CONTENT))
    writer.append(CONTENT)
    writer.finish()
    assert spool.blobs.read(DIGEST) == CONTENT


def test_missing_returns_each_absent_file_once_in_order(spool: Spool) -> None:
    spool.blobs.keep(CONTENT)
    assert spool.blobs.missing(["f" * 64, DIGEST, "e" * 64, "f" * 64]) == ("f" * 64, "e" * 64)


def test_reading_an_absent_file_raises_store_error(spool: Spool) -> None:
    with pytest.raises(StoreError, match=r"No such file"):
        spool.blobs.read(DIGEST)


BAD_DIGESTS = ["", "../../x", "/etc/passwd", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "٣" * 64]


@pytest.mark.parametrize("digest", BAD_DIGESTS)
def test_A10_name_that_is_not_a_digest_never_becomes_a_path(spool: Spool, digest: str) -> None:
    for use in (
        spool.blobs.path,
        spool.blobs.has,
        spool.blobs.read,
        lambda bad: spool.blobs.missing([bad]),
        lambda bad: spool.blobs.writer(bad, 1),
    ):
        with pytest.raises(UsageError, match=r"not a SHA-256"):
            use(digest)
    assert everything(spool) == []


def test_eviction_removes_old_files_that_no_job_needs(spool: Spool) -> None:
    needed, young, old = (spool.blobs.keep(content) for content in (b"needed", b"young", b"old one"))
    now = time.time()
    for digest in (needed, old):
        os.utime(spool.blobs.path(digest), (now - 2 * HOUR, now - 2 * HOUR))
    assert spool.blobs.evict({needed}, now) == len(b"old one")
    assert spool.blobs.missing([needed, young, old]) == (old,)
    assert spool.blobs.evict(set(), now + 2 * HOUR) == len(b"needed" + b"young")


def test_file_that_a_client_need_not_send_survives_the_next_eviction(spool: Spool) -> None:
    digest = spool.blobs.keep(CONTENT)
    os.utime(spool.blobs.path(digest), (1, 1))
    assert spool.blobs.missing([digest]) == ()
    assert spool.blobs.evict(set(), time.time()) == 0
    assert spool.blobs.has(digest)


def test_eviction_removes_abandoned_uploads_and_spares_slow_ones(spool: Spool) -> None:
    abandoned = spool.blobs.incoming / "from-before-a-crash"
    abandoned.write_bytes(b"123")
    os.utime(abandoned, (1, 1))
    writer = spool.blobs.writer(DIGEST, len(CONTENT))
    writer.append(CONTENT)
    assert spool.blobs.evict(set(), time.time() + 2 * HOUR) == 3
    assert writer.finish().read_bytes() == CONTENT
    assert spool.blobs.unfinished == set()


@pytest.mark.parametrize("count", [1, FEW_FILES, FEW_FILES + 1, MOST_TOGETHER + 1])
def test_files_are_published_together(spool: Spool, count: int) -> None:
    contents = [b"%d" % number for number in range(count)]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    for digest, content in zip(digests, contents, strict=True):
        with spool.blobs.writer(digest, len(content)) as writer:
            writer.append(content)
            writer.finish_later()
    assert spool.blobs.missing(digests) == tuple(digests[count // MOST_TOGETHER * MOST_TOGETHER :])
    assert spool.blobs.evict(digests, time.time() + 2 * HOUR) == 0
    spool.blobs.publish()
    assert [spool.blobs.read(digest) for digest in digests] == contents
    assert (list(spool.blobs.incoming.iterdir()), spool.blobs.unfinished) == ([], set())


@pytest.mark.parametrize("count", [2, FEW_FILES + 1])
def test_no_file_of_many_is_published_before_its_bytes_are_on_disk(
    spool: Spool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def watched(word: str, real: Callable[..., object], path: Path, *more: Path) -> object:
        calls.append(f"{word} {path.name}")
        return real(path, *more)

    for name in ("sync", "sync_all"):
        monkeypatch.setattr(disk, name, partial(watched, "on disk", getattr(disk, name)))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: watched("named", replace, path, to))
    for number in range(count):
        with spool.blobs.writer(hashlib.sha256(b"%d" % number).hexdigest()) as writer:
            writer.append(b"%d" % number)
            writer.finish_later()
    spool.blobs.publish()
    named = [call.removeprefix("named ") for call in calls if call.startswith("named")]
    assert len(named) == count
    for name in named:
        before = calls[: calls.index(f"named {name}")]
        assert f"on disk {name}" in before or "on disk incoming" in before
    assert calls[-1].startswith("on disk")


def test_file_sent_twice_is_stored_once(spool: Spool) -> None:
    for _ in range(2):
        with spool.blobs.writer(DIGEST) as writer:
            writer.append(CONTENT)
            writer.finish_later()
    spool.blobs.publish()
    assert (spool.blobs.read(DIGEST), list(spool.blobs.incoming.iterdir())) == (CONTENT, [])


def test_files_that_cannot_be_published_leave_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with spool.blobs.writer(DIGEST) as writer:
        writer.append(CONTENT)
        writer.finish_later()
    monkeypatch.setattr(disk, "sync", partial(_no_space, errno.ENOSPC))
    with pytest.raises(StoreError, match="no space left"):
        spool.blobs.publish()
    assert everything(spool) == []


def _no_space(number: int, _: Path) -> None:
    raise OSError(number, os.strerror(number))


def test_eviction_leaves_unknown_files(spool: Spool) -> None:
    strange = spool.blobs.directory / "README"
    strange.write_text("hello")
    assert spool.blobs.evict(set(), time.time() + 2 * HOUR) == 0
    assert strange.exists()


# --- outputs --------------------------------------------------------------------------------------------


def test_each_stream_of_each_attempt_has_an_output_that_grows(spool: Spool) -> None:
    assert spool.outputs.append(ONE, 1, "stdout", b"ab") == 2
    assert spool.outputs.append(ONE, 1, "stdout", b"\xff\x00\n") == 5
    assert spool.outputs.append(ONE, 1, "stderr", b"e") == 1
    assert spool.outputs.append(ONE, 2, "stdout", b"second") == 6
    assert spool.outputs.append(ONE, 1, "compile", b"") == 0
    found = {(n, name): spool.outputs.read(ONE, n, name, 0, 99) for n in (1, 2) for name in STREAMS}
    expected = {(1, "stdout"): b"ab\xff\x00\n", (1, "stderr"): b"e", (2, "stdout"): b"second"}
    assert found == dict.fromkeys(found, b"") | expected


def test_output_is_read_by_offset(spool: Spool) -> None:
    spool.outputs.append(ONE, 1, "stdout", b"0123456789")
    assert spool.outputs.read(ONE, 1, "stdout", 3, 4) == b"3456"
    assert spool.outputs.read(ONE, 1, "stdout", 8, 100) == b"89"
    assert spool.outputs.read(ONE, 1, "stdout", 10, 100) == spool.outputs.read(ONE, 1, "stdout", 99, 1) == b""


def test_sizes_of_all_streams_of_an_attempt(spool: Spool) -> None:
    assert spool.outputs.sizes(ONE, 1) == {}
    spool.outputs.append(ONE, 1, "stdout", b"0123456789")
    spool.outputs.append(ONE, 1, "compile", b"w")
    spool.outputs.append(ONE, 11, "stderr", b"of another one")
    assert spool.outputs.sizes(ONE, 1) == {"stdout": 10, "compile": 1}
    assert spool.outputs.sizes(ONE, 1)["stderr"] == 0
    assert spool.outputs.sizes(ONE, 2) == {}


def test_restarted_output_has_no_earlier_bytes(spool: Spool) -> None:
    spool.outputs.restart(ONE, 1, "files")
    spool.outputs.append(ONE, 1, "files", b"half of an archive")
    spool.outputs.append(ONE, 1, "stdout", b"kept")
    spool.outputs.restart(ONE, 1, "files")
    assert spool.outputs.size(ONE, 1, "files") == 0
    assert spool.outputs.append(ONE, 1, "files", b"whole") == 5
    assert (spool.outputs.read(ONE, 1, "files", 0, 99), spool.outputs.size(ONE, 1, "stdout")) == (b"whole", 4)


def test_room_is_the_free_space_less_a_reserve(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < spool.outputs.room() <= shutil.disk_usage(spool.directory).free
    monkeypatch.setattr("sshgrid.spool.outputs.RESERVED_BYTES", 1 << 62)
    assert spool.outputs.room() == 0


def test_new_spool_continues_where_the_old_one_ended(spool: Spool) -> None:
    spool.outputs.append(ONE, 1, "stdout", b"before ")
    with Spool(spool.directory) as another:
        assert another.outputs.size(ONE, 1, "stdout") == 7
        assert another.outputs.append(ONE, 1, "stdout", b"after") == 12
    assert spool.outputs.read(ONE, 1, "stdout", 0, 99) == b"before after"


def test_stream_without_output_is_empty(spool: Spool) -> None:
    assert spool.outputs.size(ONE, 1, "stderr") == 0
    assert spool.outputs.read(ONE, 1, "stderr", 0, 10) == b""
    assert spool.outputs.tail(ONE, 1, "stderr", 5) == 0
    spool.outputs.sync([(ONE, 1)])
    assert spool.outputs.jobs() == []


def test_a_thousand_outputs_need_few_descriptors_and_lose_nothing(spool: Spool) -> None:
    rng = Random(1)
    expected: dict[tuple[int, str], bytes] = {}
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(3000):
        name = (rng.randrange(1, 400), rng.choice(STREAMS))
        expected[name] = expected.get(name, b"") + b"%d\n" % number
        assert spool.outputs.append(JobId(name[0]), 1, name[1], b"%d\n" % number) == len(expected[name])
    assert len(os.listdir("/proc/self/fd")) <= descriptors + MAX_OPEN  # noqa: PTH208
    assert {name: spool.outputs.read(JobId(name[0]), 1, name[1], 0, 10_000) for name in expected} == expected
    spool.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def test_sync_includes_every_stream_and_the_folders(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in STREAMS:
        spool.outputs.append(ONE, 1, stream, b"x")
    spool.outputs.append(ONE, 2, "stdout", b"other attempt")
    synced = calls_of(monkeypatch, "fsync")
    spool.outputs.sync([(ONE, 1)])
    assert {Path(name).name for name in synced} == {"1.stdout", "1.stderr", "1.compile", "1.files", "1", "out"}


def test_file_is_on_disk_before_it_is_published(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = calls_of(monkeypatch, "fsync", "replace")
    spool.blobs.keep(CONTENT)
    # The file, the name of the new shard, the file's name, and that name in the shard.
    assert [Path(step).parent.name for step in steps] == ["incoming", "spool", "incoming", "blobs"]
    assert steps[2].startswith("replace ")


def test_removed_job_leaves_nothing_and_its_number_can_be_used_again(spool: Spool) -> None:
    spool.outputs.append(ONE, 1, "stdout", b"x")
    spool.outputs.append(TWO, 1, "stdout", b"y")
    spool.outputs.remove(ONE)
    spool.outputs.remove(ONE)
    assert (spool.outputs.jobs(), spool.outputs.size(ONE, 1, "stdout")) == ([TWO], 0)
    assert spool.outputs.append(ONE, 1, "stdout", b"z") == 1
    assert spool.outputs.read(ONE, 1, "stdout", 0, 9) == b"z"


def test_output_of_attempts_that_the_queue_does_not_have_is_removed(spool: Spool) -> None:
    for attempt in (1, 2, 10):
        spool.outputs.append(ONE, attempt, "stdout", b"x")
    spool.close()
    spool.outputs.remove_after(ONE, 1)
    spool.outputs.remove_after(TWO, 1)
    assert everything(spool) == ["out/1/1.stdout"]


@pytest.mark.parametrize(
    ("job", "attempt", "stream"),
    [
        (1, 1, "../x"),
        (1, 1, ""),
        (1, 1, "stdin"),
        (1, 0, "stdout"),
        (1, "1", "stdout"),
        (0, 1, "stdout"),
        (-1, 1, "stdout"),
        ("../1", 1, "stdout"),
        (1.5, 1, "stdout"),
    ],
)
def test_A10_only_numbers_and_known_streams_name_an_output(spool: Spool, job: JobId, attempt: int, stream: str) -> None:
    for use in (
        lambda: spool.outputs.append(job, attempt, stream, b"x"),
        lambda: spool.outputs.size(job, attempt, stream),
        lambda: spool.outputs.read(job, attempt, stream, 0, 1),
        lambda: spool.outputs.tail(job, attempt, stream, 1),
    ):
        with pytest.raises(UsageError):
            use()
    assert everything(spool) == []


def test_link_in_place_of_an_output_is_not_followed(spool: Spool, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("secret")
    (spool.outputs.directory / "1").mkdir()
    (spool.outputs.directory / "1" / "1.stdout").symlink_to(target)
    with pytest.raises(StoreError):
        spool.outputs.append(ONE, 1, "stdout", b"x")
    with pytest.raises(StoreError):
        spool.outputs.read(ONE, 1, "stdout", 0, 10)
    assert target.read_text() == "secret"


# --- tail -------------------------------------------------------------------------------------------------------------


def start_of_last(text: bytes, lines: int) -> int:
    """Return the expected offset, by splitting the whole text into lines."""
    last = text.splitlines(keepends=True)[-lines:] if lines > 0 else []
    return len(text) - sum(map(len, last))


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.sampled_from([b"\n", b"a", b"bb\n", b"\n\n", b"c" * 1000]), st.integers(1, 200))),
    lines=st.integers(0, 300),
)
def test_tail_returns_the_offset_of_the_last_lines(pieces: list[tuple[bytes, int]], lines: int) -> None:
    text = b"".join(piece * times for piece, times in pieces)
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder) / "spool") as spool:
        spool.outputs.append(ONE, 1, "stdout", text)
        assert spool.outputs.tail(ONE, 1, "stdout", lines) == start_of_last(text, lines)


def test_tail_of_a_huge_output_reads_only_its_end(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.outputs.append(ONE, 1, "stdout", b"x")
    path = spool.outputs.directory / "1" / "1.stdout"
    os.truncate(path, 2**40)
    spool.outputs.append(ONE, 1, "stdout", b"\nlast\nlines\n")
    reads = calls_of(monkeypatch, "pread")
    assert spool.outputs.tail(ONE, 1, "stdout", 2) == 2**40 + 1
    assert len(reads) <= 3


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_A40_every_folder_and_file_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Spool(tmp_path / "a" / "spool") as spool:
            spool.blobs.keep(CONTENT)
            spool.outputs.append(ONE, 1, "stdout", b"x")
    finally:
        os.umask(before)
    for path in (tmp_path / "a").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
@pytest.mark.parametrize("name", [".", "blobs", "out", "incoming"])
def test_A40_spool_that_other_users_can_enter_is_refused(spool: Spool, name: str, mode: int) -> None:
    (spool.directory / name).chmod(mode)
    with pytest.raises(StoreError, match=r"by others") as caught:
        Spool(spool.directory)
    assert caught.value.hint.startswith("chmod 700 ")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_F24_full_disk_is_reported_and_stored_output_stays_exact(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(place)], check=True)
    try:
        with Spool(place / "spool") as spool:
            _fill_and_free(spool)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _fill_and_free(spool: Spool) -> None:
    text = Random(3).randbytes(400_000)
    spool.outputs.append(TWO, 1, "stdout", b"ballast" * 10_000)
    with pytest.raises(StoreError, match=r"1\.stdout: no space left on its disk") as caught:
        spool.outputs.append(ONE, 1, "stdout", text)
    assert "df -h" in caught.value.hint
    with pytest.raises(StoreError, match=r"no space left"):
        spool.blobs.keep(CONTENT)
    assert everything(spool) == ["out/1/1.stdout", "out/2/1.stdout"]
    kept = spool.outputs.size(ONE, 1, "stdout")
    spool.outputs.remove(TWO)
    assert spool.outputs.append(ONE, 1, "stdout", text[kept : kept + 1000]) == kept + 1000
    assert spool.outputs.read(ONE, 1, "stdout", 0, 400_000) == text[: kept + 1000]


def test_file_size_limit_raises_store_error(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from sshgrid.errors import StoreError
from sshgrid.spool.spool import Spool
spool = Spool(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    spool.outputs.append(1, 1, "stdout", b"x" * 200)
except StoreError as error:
    print(spool.outputs.size(1, 1, "stdout"), error.hint)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "spool")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"100 raise it: ulimit -f unlimited\n")


KEEP_ON = """
import os, sys
from pathlib import Path
from sshgrid.spool.spool import Spool
spool = Spool(Path(sys.argv[1]))
for number in range(100_000):
    content = b"%s-%d" % (sys.argv[2].encode(), number) * 1000
    digest = spool.blobs.keep(content)
    size = spool.outputs.append(1, 1, "stdout", b"%08d" % (spool.outputs.size(1, 1, "stdout") // 8))
    spool.outputs.sync([(1, 1)])
    os.write(1, b"%s %d\\n" % (digest.encode(), size))
"""


def test_F25_kills_leave_complete_files_and_output_without_gap_or_repeat(tmp_path: Path) -> None:
    rng = Random(25)
    for round_number in range(10):
        command = [sys.executable, "-c", KEEP_ON, str(tmp_path / "spool"), str(round_number)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout
        answers = [process.stdout.readline() for _ in range(rng.randrange(1, 30))]
        process.kill()
        answers += [line for line in process.stdout if line.endswith(b"\n")]
        process.stdout.close()
        process.wait(timeout=30)
        with Spool(tmp_path / "spool") as spool:
            assert spool.blobs.missing(line.split()[0].decode() for line in answers) == ()
            assert spool.outputs.size(ONE, 1, "stdout") >= int(answers[-1].split()[1])
    with Spool(tmp_path / "spool") as spool:
        files = list(spool.blobs.directory.rglob("?" * 64))
        assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == [file.name for file in files]
        size = spool.outputs.size(ONE, 1, "stdout")
        assert spool.outputs.read(ONE, 1, "stdout", 0, size) == b"".join(b"%08d" % n for n in range(size // 8))
        assert spool.blobs.evict(set(), time.time() + 2 * HOUR) > 0
        assert everything(spool) == ["out/1/1.stdout"]
