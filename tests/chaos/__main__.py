"""`python -m tests.chaos [recovery] ...`: the torture run, or the measured times of recovery."""

from __future__ import annotations

import sys

from tests.chaos import chaos

if __name__ == "__main__":
    sys.exit(chaos.main())
