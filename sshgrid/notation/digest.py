"""SHA-256 for a few bytes, without hashlib: that loads OpenSSL, 3 ms which each command would wait for.

The digest is the same. Refuses nothing; for what is large, hashlib is five times as fast (Python's own `random` does
it in this way).
"""

from __future__ import annotations

try:
    from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # another Python than CPython
        from hashlib import sha256

__all__ = ["sha256"]
