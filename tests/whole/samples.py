"""Programs that several test modules run: each prints a line when it has begun and ends when the test ends it."""

from __future__ import annotations

# Runs until a signal ends it.
FOREVER = "import signal\nprint('begun', flush=True)\nwhile True: signal.pause()\n"
# A line of a program that imports os and time: waits until the file `gate` exists.
WAIT_FOR_GATE = "while not os.path.exists(gate): time.sleep(0.02)"


def halves(lines: int) -> str:
    """A program that prints `lines` lines, waits for the file of its first argument, and prints as many again."""
    first, second = (f'for n in range({lines}): print("{word}", n, flush=True)\n' for word in ("first", "second"))
    return f"import os, sys, time\ngate = sys.argv[1]\n{first}{WAIT_FOR_GATE}\n{second}"


def output_of_halves(lines: int) -> bytes:
    """The output of `halves(lines)`."""
    return b"".join(b"%s %d\n" % (word, n) for word in (b"first", b"second") for n in range(lines))
