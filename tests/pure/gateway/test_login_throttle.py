"""After each wrong password the next one waits longer, whether the user exists or not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sshgrid.gateway.login_throttle import FORGOTTEN_AFTER_SECONDS, LONGEST_SECONDS, MOST_REMEMBERED, LoginThrottle


def test_A27_the_wait_doubles_from_one_second_to_a_minute_and_is_forgotten() -> None:
    throttle, now, waits = LoginThrottle(), 0.0, []
    for _ in range(9):
        throttle.failed("10.0.0.1", "ann", now)
        waits.append(throttle.wait_seconds("10.0.0.1", "ann", now))
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert throttle.wait_seconds("10.0.0.1", "ann", now) == 0
    throttle.failed("10.0.0.1", "ann", now + FORGOTTEN_AFTER_SECONDS + 1)
    assert throttle.wait_seconds("10.0.0.1", "ann", now + FORGOTTEN_AFTER_SECONDS + 1) == 1


def test_A27_the_address_waits_for_every_user_and_the_user_for_every_address() -> None:
    throttle = LoginThrottle()
    throttle.failed("10.0.0.1", "ann", 0.0)
    assert throttle.wait_seconds("10.0.0.1", "bob", 0.5) == 0.5
    assert throttle.wait_seconds("10.0.0.2", "ann", 0.5) == 0.5
    assert throttle.wait_seconds("10.0.0.2", "bob", 0.5) == 0.0
    throttle.succeeded("ann")
    assert throttle.wait_seconds("10.0.0.2", "ann", 0.5) == 0.0
    assert throttle.wait_seconds("10.0.0.1", "ann", 0.5) == 0.5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.floats(0, 5)), max_size=60))
def test_no_wait_is_longer_than_the_longest(guesses: list[tuple[str, str, float]]) -> None:
    throttle, now = LoginThrottle(), 0.0
    for address, user, pause in guesses:
        now += pause
        throttle.failed(address, user, now)
        assert 0.999 <= throttle.wait_seconds(address, user, now) <= LONGEST_SECONDS + 0.001


def test_the_number_of_remembered_names_is_limited() -> None:
    throttle = LoginThrottle()
    for number in range(MOST_REMEMBERED):
        throttle.failed(f"10.0.{number}", f"user{number}" * 100, float(number))
    assert len(throttle._failures) == MOST_REMEMBERED
