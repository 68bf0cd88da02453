"""How long somebody who guessed wrong has to wait before the next guess is looked at.

Pure: times are passed in. The same for users that exist and for others, and for each address. Refuses to grow: only so
many are remembered, the oldest go first.
"""

from __future__ import annotations

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0
FORGOTTEN_AFTER_SECONDS = 900.0
MOST_REMEMBERED = 10_000


class LoginThrottle:
    """Failures of addresses and of users."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}  # what -> (how many in a row, the last one)

    def wait_seconds(self, address: str, user: str, now: float) -> float:
        """From now until the next guess of this address at this user is looked at."""
        return max(self._rest(key, now) for key in _keys(address, user))

    def failed(self, address: str, user: str, now: float) -> None:
        for key in _keys(address, user):
            count, last = self._failures.pop(key, (0, now))
            count = 0 if now - last > FORGOTTEN_AFTER_SECONDS else count
            self._failures[key] = (count + 1, now)
        while len(self._failures) > MOST_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def succeeded(self, user: str) -> None:
        """The user is who it says; what others try from the same address still counts."""
        self._failures.pop(_user_key(user), None)

    def _rest(self, key: str, now: float) -> float:
        count, last = self._failures.get(key, (0, 0.0))
        if count == 0 or now - last > FORGOTTEN_AFTER_SECONDS:
            return 0.0
        delay = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(count - 1, 10))
        return max(0.0, last + delay - now)


def _user_key(user: str) -> str:
    return f"user {user[:64]}"


def _keys(address: str, user: str) -> tuple[str, str]:
    return f"address {address}", _user_key(user)
