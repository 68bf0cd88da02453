"""How long the client looks for the next master, with a clock that the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sshgrid.client import follow, start
from sshgrid.client.connection import Connection
from sshgrid.client.follow import JobFollower, reconnect
from sshgrid.clock import Clock
from sshgrid.errors import MasterGone, UsageError
from sshgrid.model import JobId
from sshgrid.protocol import messages
from sshgrid.terminal.screen import JsonScreen
from tests.service.conftest import Cli
from tests.service.fake_master import CLOSE, FakeMaster

JOB = JobId(7)
LOST = MasterGone("the connection failed")


def clock_at(*seconds: float) -> Clock:
    """A monotonic clock that shows these times, one after the other; the last one stays."""
    left = list(seconds)
    return Clock(time.time, lambda: left.pop(0) if len(left) > 1 else left[0])


def failing(error: Exception, times: int = 1_000_000) -> tuple[Callable[[], str], list[int]]:
    """A function that raises for its first `times` calls, and the list of its calls."""
    calls = list[int]()

    def reopen() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return "connection"

    return reopen, calls


def test_reconnect_ends_when_the_time_has_passed() -> None:
    reopen, calls = failing(LOST)
    with pytest.raises(MasterGone, match="the master of job 7 is gone, and the job continues") as raised:
        reconnect(reopen, print, JOB, LOST, clock_at(0.0, 0.0, follow.RECONNECT_SECONDS + 1.0))  # type: ignore[arg-type]
    assert (len(calls), raised.value.hint) == (2, "sshgrid attach 7")


def test_reconnect_passes_the_new_connection_on() -> None:
    reopen, calls = failing(LOST, 2)
    begun = list[object]()
    reconnect(reopen, begun.append, JOB, LOST, clock_at(0.0))  # type: ignore[arg-type]
    assert (begun, len(calls)) == (["connection"], 3)


def test_reconnect_ends_at_once_with_an_error_that_stays() -> None:
    reopen, calls = failing(UsageError("no inventory"))
    with pytest.raises(MasterGone, match="no inventory"):
        reconnect(reopen, print, JOB, LOST, clock_at(0.0))  # type: ignore[arg-type]
    assert len(calls) == 1


def test_a_follower_whose_master_does_not_return_raises_master_gone(cli: Cli) -> None:
    def reopen() -> Connection:
        raise LOST

    with FakeMaster(cli.places) as fake:
        fake.reply(messages.Watch, CLOSE)
        follower = JobFollower(
            start.connect(cli.places), JOB, JsonScreen(), reopen, clock=clock_at(0.0, follow.RECONNECT_SECONDS + 1.0)
        )
        with pytest.raises(MasterGone, match="the master of job 7 is gone"):
            follower.until_ended()


def test_a_master_that_does_not_stop_is_an_error(cli: Cli, fake: FakeMaster) -> None:
    with pytest.raises(MasterGone, match="the old master does not stop"):
        start.wait_until_left(cli.places.socket, 20.0, clock_at(0.0, 0.0, 21.0))
