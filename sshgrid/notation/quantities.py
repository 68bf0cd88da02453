"""Parse and format durations (`500ms 10s 5m 2h 1d`) and sizes (`512M 4G`).

The command line and the inventory use this module, so it imports nothing slow. Values that are negative, empty or not
finite, and unknown units, are a UsageError whose hint shows the accepted forms.
"""

from __future__ import annotations

import re

from sshgrid.errors import UsageError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"(?:[0-9]{1,15}(?:\.[0-9]{1,9})?)"
_BARE = re.compile(_NUMBER, re.ASCII)
_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)", re.ASCII)
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d))+", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER})([KMGTP]?)(i?B)?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_duration(text: str) -> float:
    """Seconds. A number without a unit means seconds, as in timeout(1); parts are added: ``1h30m``."""
    if _BARE.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise UsageError(f"{text!r} is not a duration", "write it like 500ms, 10s, 5m, 2h or 1d")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def parse_size(text: str) -> int:
    """Bytes. As in GNU coreutils, K, M, G, T, P (and KiB ...) are powers of 1024, and KB, MB ... powers of 1000."""
    found = _SIZE.fullmatch(text)
    suffix = (found[3] or "").upper() if found else ""
    if found is None or (suffix == "IB" and not found[2]):
        raise UsageError(f"{text!r} is not a size", "write it like 512M or 4G")
    number, power = found[1], _POWERS[found[2].upper()]
    factor = int((1000 if suffix == "B" else 1024) ** power)
    return int(float(number) * factor) if "." in number else int(number) * factor


def format_duration(seconds: float) -> str:
    """A text with at most two units that parse_duration reads: ``350ms 1.5s 42s 2m5s 3h10m 2d4h``."""
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 0.9995:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    return _two_units(round(seconds))


def _two_units(whole: int) -> str:
    minutes, seconds = divmod(whole, 60)
    if minutes < 60:
        return _joined((minutes, "m"), (seconds, "s"))
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return _joined((hours, "h"), (minutes, "m"))
    days, hours = divmod(hours, 24)
    return _joined((days, "d"), (hours, "h"))


def _joined(*parts: tuple[int, str]) -> str:
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def format_size(size: int) -> str:
    """A text with at most three digits, in powers of 1024: ``0B 512B 1.5K 640M 31G``."""
    value, powers = float(abs(size)), iter("BKMGTP")
    unit = next(powers)
    while value >= 999.5 and unit != "P":
        value, unit = value / 1024, next(powers)
    number = f"{value:.1f}".removesuffix(".0") if value < 9.95 else str(round(value))
    return f"{'-' if size < 0 else ''}{number}{unit}"
