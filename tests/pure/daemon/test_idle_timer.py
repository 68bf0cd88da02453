"""When a master has been idle for too long, by a clock that the tests set."""

from __future__ import annotations

from sshgrid.clock import Clock
from sshgrid.daemon.server import IdleTimer


def test_a_timer_expires_after_its_seconds_and_starts_again_with_work() -> None:
    now = 100.0
    timer = IdleTimer(10.0, Clock(lambda: 0.0, lambda: now))
    now = 110.0
    assert not timer.has_expired
    now = 110.1
    assert timer.has_expired
    timer.restart()
    assert not timer.has_expired
    now = 120.2
    assert timer.has_expired


def test_a_timer_without_seconds_never_expires() -> None:
    now = 0.0
    timer = IdleTimer(None, Clock(lambda: 0.0, lambda: now))
    now = 1e9
    assert not timer.has_expired
