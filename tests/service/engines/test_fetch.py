"""Fetched files on the master: durable before the job is done, and available until `rm`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import msgspec
import pytest

from sshgrid.errors import Dropped, UsageError
from sshgrid.model import CompileFailed, Exited, JobId, Outcome
from sshgrid.protocol.messages import Cancel, Logs, Output
from sshgrid.spool.outputs import Outputs
from sshgrid.testing import ScriptedGrid, Stage, until
from tests.service.conftest import Grids

pytestmark = pytest.mark.usefixtures("quiet_log")


async def leaves_two(stage: Stage) -> Outcome:
    stage.files |= {"out/a": b"first", "b": b"second"}
    return Exited(3)


def contents(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        streams = {member.name: tar.extractfile(member) for member in tar}
        return {name: stream.read() for name, stream in streams.items() if stream is not None}


async def asked_for(grid: ScriptedGrid, job: JobId) -> bytes:
    """Return the files that a client receives after the end of the job."""
    events = await grid.watch(job, Logs(job, streams=("files",)))
    assert [event.stream for event, _ in events if isinstance(event, Output)] == ["files"] * (len(events) - 1)
    return b"".join(payload for _, payload in events)


async def test_fetched_files_are_stored_when_the_job_has_ended_and_after_a_restart(grids: Grids) -> None:
    grid = await grids(leaves_two)
    job = await grid.submit(grid.submission(fetch=("out", "none")))
    line = await grid.wait(job)
    assert (line.state, line.fetch) == ("FAILED", ("out", "none"))
    assert line.fetched is not None
    assert (line.fetched.files, line.fetched.size) == (1, 5)
    assert line.fetched.warnings == ("--fetch none: no file matches",)
    assert contents(await asked_for(grid, job)) == {"./out/a": b"first"}
    await grid.end()
    grid = await grids()
    assert grid.line(job).fetched == line.fetched
    assert contents(await asked_for(grid, job)) == {"./out/a": b"first"}


async def test_removing_a_job_removes_its_fetched_files(grids: Grids) -> None:
    grid = await grids(leaves_two)
    job = await grid.submit(grid.submission(fetch=("*",)))
    await grid.wait(job)
    assert grid.spool.outputs.size(job, 1, "files") > 0
    await grid.master.remove([job])
    assert grid.spool.outputs.jobs() == []


async def test_fetched_files_are_on_disk_before_the_job_is_settled(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = await grids(leaves_two)
    synced: list[tuple[int, str]] = []
    sync = Outputs.sync

    def remember(outputs: Outputs, attempts: Sequence[tuple[JobId, int]]) -> None:
        synced.extend((outputs.size(job, attempt, "files"), grid.job(job).phase) for job, attempt in attempts)
        sync(outputs, attempts)

    monkeypatch.setattr(Outputs, "sync", remember)
    job = await grid.submit(grid.submission(fetch=("*",)))
    await grid.wait(job)
    assert synced == [(grid.spool.outputs.size(job, 1, "files"), "running")]
    assert synced[0][0] > 0


async def test_only_the_attempt_that_counts_fetches_files(grids: Grids) -> None:
    async def is_lost(stage: Stage) -> Outcome:
        stage.files["old"] = b"old"
        raise Dropped("n1", "reset")

    grid = await grids(is_lost, leaves_two)
    job = await grid.submit(grid.submission(fetch=(".",)))
    line = await grid.wait(job)
    assert (line.attempt, line.fetched and line.fetched.files) == (2, 2)
    assert contents(await asked_for(grid, job)).keys() == {"./out/a", "./b"}


async def test_a_cancelled_job_and_one_that_does_not_compile_fetch_nothing(grids: Grids) -> None:
    async def is_told(stage: Stage) -> Outcome:
        stage.files["x"] = b"x"
        await stage.say(b"ready\n")
        await stage.signal()
        return Exited(0)

    grid = await grids(is_told, CompileFailed(1))
    job = await grid.submit(grid.submission(fetch=("x",)))
    await until(lambda: grid.kept(job) == b"ready\n")
    await grid.master.cancel(Cancel((job,)))
    line = await grid.wait(job)
    assert (line.state, grid.spool.outputs.size(job, 1, "files")) == ("CANCELLED", 0)
    line = await grid.run(grid.submission(fetch=("x",)))
    assert (line.state, line.fetched) == ("COMPILE_ERROR", None)


async def test_with_a_full_disk_on_the_master_no_files_are_fetched_and_the_result_is_kept(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outputs, "room", lambda _: 6)
    grid = await grids(leaves_two)
    line = await grid.run(grid.submission(fetch=(".",)))
    assert (line.exit_code, line.fetched and line.fetched.files) == (3, 1)
    assert line.fetched is not None
    assert "out/a (5B)" in line.fetched.warnings[0]


@pytest.mark.parametrize("glob", ["/etc/passwd", "../x", "", "a\0b"])
async def test_A10_the_master_refuses_a_name_that_the_client_did_not_check(grids: Grids, glob: str) -> None:
    grid = await grids()
    with pytest.raises(UsageError, match="--fetch"):
        await grid.submit(grid.submission(fetch=(glob,)))


async def test_A10_data_with_a_name_outside_the_folder_or_not_uploaded_is_refused(grids: Grids) -> None:
    grid = await grids()
    good = grid.submission().program.files[0]
    for name in ("../x", "/x", "a/../../x", ""):
        with pytest.raises(UsageError, match="file name"):
            await grid.submit(grid.submission(data=(msgspec.structs.replace(good, name=name),)))
    absent = (msgspec.structs.replace(good, sha256="0" * 64),)
    for submission in (grid.submission(data=absent), grid.submission(packs=absent)):
        with pytest.raises(UsageError, match="not uploaded"):
            await grid.submit(submission)
    with pytest.raises(UsageError, match="twice"):
        await grid.submit(grid.submission(data=(good, good)))
