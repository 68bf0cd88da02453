"""Many users on one master: what each can see, the limits of each, and what ends with an account."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sshgrid.clock import Clock
from sshgrid.errors import OverLimit
from sshgrid.model import Caps, Exited, JobId, Limits, Phase, Program, Role, SourceFile, Submission, Sweep, User
from sshgrid.protocol import messages, user_messages
from sshgrid.protocol.messages import (
    Accepted,
    Cancel,
    Done,
    Failure,
    Hold,
    Info,
    Jobs,
    JobsReply,
    Logs,
    Remove,
    Submit,
    Watch,
)
from sshgrid.protocol.user_messages import UsersQuestion, UsersReply
from sshgrid.sweeps import inputs, parameters
from sshgrid.testing import after, until, until_killed
from sshgrid.users.accounts import Accounts
from tests.service.conftest import Grids
from tests.service.server.test_session import FakeProcess
from tests.service.talk import Talk

pytestmark = pytest.mark.usefixtures("quiet_log")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICDz4i1b1nN7v9mOQ7dGJTbYwTVnBr9cAc1sZ6mFj0Dk ann@laptop"
TALKS: list[Talk] = []


@pytest.fixture
async def process(grids: Grids, tmp_path: Path) -> AsyncIterator[FakeProcess]:
    process = FakeProcess(await grids(nodes=("n1",)), tmp_path / "s")
    listener = await asyncio.start_unix_server(process.accept, process.path)
    yield process
    for talk in TALKS:
        await talk.close()
    TALKS.clear()
    listener.close()
    for task in process.tasks:
        task.cancel()
    await asyncio.gather(*process.tasks, return_exceptions=True)


async def talk_as(process: FakeProcess, name: str, role: Role = Role.USER) -> Talk:
    process.user = User(name, role)
    TALKS.append(await process.talk())
    return TALKS[-1]


async def with_user(process: FakeProcess, name: str, caps: Caps | None = None) -> Talk:
    """A session of a new user."""
    async with await talk_as(process, "root", Role.OWNER) as owner:
        await owner.request(user_messages.AddUser(name), UsersReply)
        if caps is not None:
            await owner.request(user_messages.SetCaps(name, caps), UsersReply)
    return await talk_as(process, name)


async def test_A31_a_user_can_see_and_change_only_own_jobs(process: FakeProcess) -> None:
    process.grid.engine.plays(until_killed, until_killed)
    ann, bob = await with_user(process, "ann"), await with_user(process, "bob")
    hers, his = await ann.submit(b"echo hers\n", "k"), await bob.submit(b"echo his\n", "k")
    assert hers != his
    missing = (await ann.request(Info(JobId(999)), Failure)).message
    for request in (Info(his), Watch(his), Logs(his), Cancel((hers, his)), Hold((his,)), Remove((his,))):
        refused = await ann.request(request, Failure)
        assert (refused.code, refused.message) == ("no-such-job", missing.replace("999", str(his)))
    assert not process.grid.active_jobs.current(hers).cancel_requested
    for query, wanted in ((Jobs(), [hers]), (Jobs("all"), [hers]), (Jobs("last"), [hers]), (Jobs(user="bob"), [])):
        assert [line.id for line in (await ann.request(query, JobsReply)).jobs] == wanted
    assert (await ann.request(Jobs(str(his)), Failure)).message == missing.replace("999", str(his))
    assert (await ann.request(Jobs(active_only=True, limit=9), JobsReply)).jobs[0].id == hers
    async with await talk_as(process, "ada", Role.ADMIN) as admin:
        assert [line.id for line in (await admin.request(Jobs(), JobsReply)).jobs] == [hers, his]
        assert await admin.request(Cancel((hers, his), "KILL"), Done) == Done(2)


async def test_A31_a_watching_user_cannot_signal_the_job_of_another_user(process: FakeProcess) -> None:
    process.grid.engine.plays(until_killed, until_killed)
    ann, bob = await with_user(process, "ann"), await with_user(process, "bob")
    hers, his = await ann.submit(b"echo hers\n", "k"), await bob.submit(b"echo his\n", "k")
    await ann.send(Watch(hers))
    await ann.send(Cancel((his,), "KILL"))
    assert (await ann.until(Failure)).code == "no-such-job"
    await ann.send(Cancel((hers,), "KILL"))
    assert (await ann.until(messages.Ended)).job.id == hers
    assert not process.grid.active_jobs.current(his).cancel_requested
    async with await talk_as(process, "root", Role.OWNER) as owner:
        assert await owner.request(Cancel((his,), "KILL"), Done) == Done(1)


async def test_a_digest_does_not_give_access_to_a_file(process: FakeProcess) -> None:
    secret = b"echo secret\n"
    digest = hashlib.sha256(secret).hexdigest()
    ann, bob = await with_user(process, "ann"), await with_user(process, "bob")
    process.grid.engine.plays(until_killed)
    job = await ann.submit(secret, "k")
    asked = Submission(Program("sh", "a.sh", (SourceFile("a.sh", digest, len(secret)),)), "a.sh")
    assert (await bob.request(messages.MissingBlobs((digest,)), messages.MissingBlobsReply)).sha256 == (digest,)
    for request in (Submit(asked, "mine"), messages.Explain(asked)):
        assert "not uploaded" in (await bob.request(request, Failure)).message
    async with await talk_as(process, "ann") as again:
        assert (await again.request(messages.MissingBlobs((digest,)), messages.MissingBlobsReply)).sha256 == ()
    assert await ann.request(Cancel((job,), "KILL"), Done) == Done(1)


async def test_a_digest_does_not_give_access_to_a_file_as_input_of_a_task(process: FakeProcess) -> None:
    secret = b"hers alone"
    digest = process.grid.spool.blobs.keep(secret)
    bob = await with_user(process, "bob")
    table = parameters.encode(parameters.Table((parameters.Axis(("x",), ((b"1",),)),)))
    listed = inputs.encode(inputs.collect(1, {1: SourceFile("stdin", digest, len(secret))}))
    source = SourceFile("a.sh", await bob.put(b"cat\n"), 4)
    files = [SourceFile("list", await bob.put(content), len(content)) for content in (table, listed)]
    plan = Sweep(files[0], 1, inputs=files[1])
    asked = Submission(Program("sh", "a.sh", (source,)), "a.sh", sweep=plan)
    assert "1 file of this job was not uploaded" in (await bob.request(Submit(asked, "mine"), Failure)).message
    await bob.put(secret)
    assert await bob.request(Submit(asked, "mine"), messages.Accepted)


async def test_the_status_shows_a_user_no_paths_of_the_host(process: FakeProcess) -> None:
    ann = await with_user(process, "ann")
    status = await ann.request(messages.Status(), messages.StatusReply)
    assert (status.socket, status.state_dir, status.inventory, status.jobs_by_state) == ("", "", "", {})
    assert (await ann.request(messages.Backup("/tmp/x"), Failure)).code == "not-allowed"
    assert (await ann.request(user_messages.Users(), Failure)).code == "not-allowed"
    async with await talk_as(process, "root", Role.OWNER) as owner:
        assert [line.user for line in (await owner.request(messages.Clients(), messages.ClientsReply)).clients] == [
            "ann",
            "root",
        ]
        assert [line.user for line in (await ann.request(messages.Clients(), messages.ClientsReply)).clients] == ["ann"]


async def test_accounts_are_stored_and_changed(process: FakeProcess) -> None:
    async with await talk_as(process, "root", Role.OWNER) as owner:
        (line,) = (await owner.request(user_messages.AddUser("ann", keys=(KEY,)), UsersReply)).users
        assert (line.role, line.disabled, line.password, line.caps.queued) == (Role.USER, False, False, 1000)
        fingerprint = line.keys[0].fingerprint
        await owner.request(user_messages.AddUser("ada", Role.ADMIN), UsersReply)
        (line,) = (await owner.request(user_messages.SetPassword("ann", "correct horse"), UsersReply)).users
        assert line.password
        await owner.request(user_messages.SetCaps("ann", Caps(running=2)), UsersReply)
        await owner.request(user_messages.AddKey("ada", KEY), UsersReply)
        await owner.request(user_messages.DisableUser("ada"), UsersReply)
        assert (await owner.request(user_messages.RemoveKey("ann", fingerprint[:12]), UsersReply)).users[0].keys == ()
        ada, ann = (await owner.request(user_messages.Users(), UsersReply)).users
        assert (ada.name, ada.role, ada.disabled, ada.caps) == ("ada", Role.ADMIN, True, Caps())
        assert (ann.name, ann.password, ann.caps) == ("ann", True, Caps(running=2))
        wrong: tuple[UsersQuestion, ...] = (
            user_messages.AddUser("ann"),
            *(user_messages.AddUser(name) for name in ("", "Ann", "../ann", "-x", "a b", "ann\n", "x" * 40)),
            user_messages.AddUser("bob", Role.OWNER),
            user_messages.AddKey("ann", "nonsense"),
            user_messages.RemoveKey("ann", "SHA256:x"),
            user_messages.SetPassword("ann", "short"),
            user_messages.SetCaps("ann", Caps(queued=-1)),
        )
        for request in wrong:
            assert (await owner.request(request, Failure)).code == "usage", request
        assert (await owner.request(user_messages.RemoveUser("bob"), Failure)).code == "no-such-user"
    assert [user.name for user in process.grid.store.users.all()] == ["ada", "ann"]
    assert process.master.accounts.find("ada") is None


async def test_removing_a_user_cancels_the_waiting_jobs(process: FakeProcess) -> None:
    process.grid.engine.plays(until_killed)
    told: list[str] = []
    process.master.accounts.on_locked_out.append(told.append)
    ann = await with_user(process, "ann", Caps(running=1))
    running, waiting = await ann.submit(b"echo 1\n", "1"), await ann.submit(b"echo 2\n", "2")
    await process.grid.reaches(running, "RUNNING")
    async with await talk_as(process, "root", Role.OWNER) as owner:
        assert await owner.request(user_messages.RemoveUser("ann"), Done) == Done(1)
        assert process.grid.line(waiting).state == "CANCELLED"
        assert process.grid.line(running).state == "RUNNING"
        assert await owner.request(Cancel((running,), "KILL"), Done) == Done(1)
    assert told == ["ann"]


async def test_A33_jobs_over_the_running_limit_wait_and_over_the_queue_limit_are_refused(process: FakeProcess) -> None:
    process.grid.engine.plays(until_killed, after(b"", Exited(0)))
    ann = await with_user(process, "ann", Caps(queued=1, running=1))
    first = await ann.submit(b"echo 1\n", "1")
    await process.grid.reaches(first, "RUNNING")
    second = await ann.submit(b"echo 2\n", "2")
    assert (await ann.request(Info(second), JobsReply)).jobs[0].reason == "UserLimit"
    digest = await ann.put(b"echo 3\n")
    third = Submission(Program("", "a.sh", (SourceFile("a.sh", digest, 7),)), "a.sh")
    refused = await ann.request(Submit(third, "3"), Failure)
    assert (refused.code, "queued jobs is 1" in refused.message) == ("over-limit", True)
    assert await ann.request(Cancel((first,), "KILL"), Done) == Done(1)
    assert (await process.grid.wait(second)).state == "COMPLETED"
    assert (await ann.request(Submit(third, "3"), Accepted)).job > second


async def test_A33_the_limits_of_a_user_apply_to_a_run_without_limits(process: FakeProcess) -> None:
    process.grid.engine.plays(until_killed)
    ann = await with_user(process, "ann", Caps(wall_seconds=60.0, output_bytes=1000))
    job = await ann.submit(b"echo 1\n", "1")
    assert process.grid.active_jobs.current(job).submission.program.limits == Limits(60.0, None, 1000)
    assert await ann.request(Cancel((job,), "KILL"), Done) == Done(1)


async def test_A33_uploads_that_no_job_names_are_limited(process: FakeProcess) -> None:
    process.grid.engine.plays(until_killed)
    ann = await with_user(process, "ann", Caps(upload_bytes=2000))
    for number in range(3):
        job = await ann.submit(b"#" * 1000 + b"%d\n" % number, str(number))  # files that a job names are not counted
        await ann.request(Cancel((job,), "KILL"), Done)
    await ann.put(b"x" * 1500)
    await ann.put(b"y" * 1500)
    refused = await ann.expect(Failure)
    assert (refused.code, "your limit" in refused.message) == ("over-limit", True)
    async with await talk_as(process, "ann") as again:
        await again.put(b"z" * 1500)
        assert (await again.expect(Failure)).code == "over-limit"


async def test_the_running_limit_of_one_user_does_not_delay_another(process: FakeProcess) -> None:
    process.grid.engine.plays(*[until_killed] * 6)
    ann, bob = await with_user(process, "ann", Caps(running=1)), await with_user(process, "bob")
    hers = [await ann.submit(b"echo %d\n" % number, str(number)) for number in range(3)]
    his = [await bob.submit(b"echo %d\n" % number, str(number)) for number in range(3)]
    running = process.grid.active_jobs.in_phase
    await until(lambda: len(running(Phase.RUNNING)) == 4)
    assert {job.id for job in running(Phase.RUNNING)} == {hers[0], *his}
    async with await talk_as(process, "root", Role.OWNER) as owner:
        await owner.request(user_messages.SetCaps("ann", Caps()), UsersReply)
        await owner.request(Cancel((his[0],), "KILL"), Done)
        await until(lambda: {job.id for job in running(Phase.RUNNING)} == {*hers[:2], *his[1:]})
        await owner.request(Cancel((*hers, *his), "KILL"), Done)


async def test_A33_unclaimed_uploads_are_counted_for_an_hour(process: FakeProcess) -> None:
    now = 0.0
    accounts = Accounts(process.grid.active_jobs, lambda job, by: None, Clock(lambda: 0.0, lambda: now))
    await accounts.answer(user_messages.AddUser("ann"))
    await accounts.answer(user_messages.SetCaps("ann", Caps(upload_bytes=2000)))
    accounts.add_upload("ann", 1500)
    accounts.claim_upload("ann", 1000)
    accounts.add_upload("ann", 1500)
    now = 3600.0
    with pytest.raises(OverLimit):
        accounts.add_upload("ann", 1)
    now = 3600.1
    accounts.add_upload("ann", 2000)
    accounts.close()
