"""How long the next password of an address or a user has to wait after wrong ones.

Pure: times are passed in, in seconds of a clock that only grows. Names that do not exist are treated as those that do.
Only MOST_REMEMBERED addresses and users are remembered; the oldest are dropped first.
"""

from __future__ import annotations

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0
FORGOTTEN_AFTER_SECONDS = 900.0
MOST_REMEMBERED = 10_000


class LoginThrottle:
    """The failed logins of addresses and of users."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}  # key -> (failures in a row, time of the last one)

    def wait_seconds(self, address: str, user: str, now: float) -> float:
        """How long the next password for this user from this address has to wait."""
        return max(self._remaining(key, now) for key in _keys(address, user))

    def failed(self, address: str, user: str, now: float) -> None:
        """Count a wrong password."""
        for key in _keys(address, user):
            count, last = self._failures.pop(key, (0, now))
            count = 0 if now - last > FORGOTTEN_AFTER_SECONDS else count
            self._failures[key] = (count + 1, now)
        while len(self._failures) > MOST_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def succeeded(self, user: str) -> None:
        """Forget the failures of this user, and keep those of the address."""
        self._failures.pop(_user_key(user), None)

    def _remaining(self, key: str, now: float) -> float:
        count, last = self._failures.get(key, (0, 0.0))
        if count == 0 or now - last > FORGOTTEN_AFTER_SECONDS:
            return 0.0
        delay = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(count - 1, 10))
        return max(0.0, last + delay - now)


def _user_key(user: str) -> str:
    return f"user {user[:64]}"


def _keys(address: str, user: str) -> tuple[str, str]:
    return f"address {address}", _user_key(user)
