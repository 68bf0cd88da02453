"""A live view while the master answers, refuses, does not answer, exits and returns."""

from __future__ import annotations

import time

import pytest

from sshgrid.client import poll
from sshgrid.client.connection import Connection
from sshgrid.client.poll import MasterPoller, Snapshot, fetch_snapshot, request_all
from sshgrid.client.session import Session
from sshgrid.clock import Clock
from sshgrid.errors import MasterGone, SshgridError
from sshgrid.model import JobId
from sshgrid.monitor import actions
from sshgrid.monitor.view import Action, Command, Page
from sshgrid.protocol import messages
from tests.service.conftest import Cli, wait_until
from tests.service.fake_master import FakeMaster, job_line, output


@pytest.fixture
def session(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.chdir(cli.folder)
    found = Session(cli.environ)
    found.muted = True
    return found


def test_a_snapshot_is_fetched_in_one_round_trip(fake: FakeMaster, session: Session) -> None:
    line = messages.ClientLine("ann", "local", 1.0, 2, 1)
    fake.reply(messages.Clients, messages.ClientsReply((line,)))
    with session.connect_running() as connection:
        found = fetch_snapshot(connection)
    assert ([node.name for node in found.nodes], [job.id for job in found.jobs]) == (["h2"], [42])
    assert found.clients == (line,)
    assert fake.received(messages.Nodes) == [messages.Nodes(history=True)]
    assert fake.received(messages.Jobs) == [messages.Jobs(active_only=True, limit=poll.MAX_JOBS)]


def test_a_poller_keeps_its_newest_result_and_reconnects(cli: Cli, session: Session) -> None:
    with MasterPoller(session.connect_running, ask_status, 0.02) as pid:
        wait_until(lambda: "no master is running" in pid.problem, lambda: pid.problem)
        with FakeMaster(cli.places):
            wait_until(lambda: pid.newest == 4242 and not pid.problem, lambda: (pid.newest, pid.problem))
        wait_until(lambda: "no master is running" in pid.problem, lambda: pid.problem)
        assert pid.newest == 4242
        with FakeMaster(cli.places):
            wait_until(lambda: not pid.problem, lambda: pid.problem)


def ask_status(connection: Connection) -> int:
    status: messages.StatusReply = request_all(connection, [messages.Status()], [messages.StatusReply])[0]
    return status.pid


def test_a_live_view_does_not_replace_a_master_of_another_version(cli: Cli, session: Session) -> None:
    with FakeMaster(cli.places, version="99.0") as newer, session.connect_running() as connection:
        assert ask_status(connection) == 4242
        assert newer.received(messages.Stop) == []
    with FakeMaster(cli.places) as stranger:
        stranger.refuses = messages.Failure("version", "this master speaks protocol 99")
        with pytest.raises(SshgridError, match="protocol 99"):
            session.connect_running()


def test_a_master_that_does_not_answer_is_an_error_after_a_timeout(fake: FakeMaster, session: Session) -> None:
    late = Clock(time.time, lambda: time.monotonic() - poll.ANSWER_SECONDS)  # the deadline has already passed
    fake.reply(messages.Status)
    with session.connect_running() as connection, pytest.raises(MasterGone, match="does not answer"):
        request_all(connection, [messages.Status()], [messages.StatusReply], late)


def test_the_actions_of_the_monitor_are_performed(fake: FakeMaster, session: Session) -> None:
    snapshot = None
    assert actions.perform(session, Command(Action.KILL, "7"), snapshot) == "job 7 is being cancelled"
    assert fake.received(messages.Cancel) == [messages.Cancel((JobId(7),), "TERM")]
    fake.reply(messages.Cancel, messages.Failure("no-such-job", "no such job: 7"))
    assert actions.perform(session, Command(Action.KILL, "7"), snapshot) == "no such job: 7"
    fake.reply(messages.Logs, output("stdout", b"one\ntw"), output("stderr", b"o\xff"), messages.Ended(job_line(7)))
    page = actions.perform(session, Command(Action.LOGS, "7"), snapshot)
    assert isinstance(page, Page)
    assert page.lines == ("one", "two\ufffd", "", "[COMPLETED]")
    page = actions.perform(session, Command(Action.JOB, "7"), snapshot)
    assert isinstance(page, Page)
    assert any("Primes.java 1000" in line for line in page.lines)
    assert (
        actions.perform(session, Command(Action.NODE, "gone"), Snapshot(0.0, status_of(session)))
        == "gone is no longer in the inventory"
    )


def status_of(session: Session) -> messages.StatusReply:
    with session.connect_running() as connection:
        found: messages.StatusReply = request_all(connection, [messages.Status()], [messages.StatusReply])[0]
    return found


def test_the_output_page_is_bounded(fake: FakeMaster, session: Session) -> None:
    piece = b"x" * 99 + b"\n"
    fake.reply(messages.Logs, *[output("stdout", piece * 5000)] * 4, messages.Ended(job_line(7)))
    with session.connect_running() as connection:
        lines = actions.read_output(connection, JobId(7))
    assert sum(map(len, lines)) <= actions.LOG_BYTES + len("[COMPLETED]")
