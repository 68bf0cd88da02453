"""`python -m tests.chaos [recovery] ...`: the torture run, or the measured times of recovery."""

from __future__ import annotations

import sys

from tests.chaos import chaos, recovery

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(recovery.main(words[1:]) if words[:1] == ["recovery"] else chaos.main(words))
