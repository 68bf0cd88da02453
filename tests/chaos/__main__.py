"""`python -m tests.chaos [recovery] ...`: the chaos run, or the measurement of recovery times."""

from __future__ import annotations

import sys

from tests.chaos import chaos, recovery

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(recovery.main(words[1:]) if words[:1] == ["recovery"] else chaos.main(words))
