"""SHA-256 for small inputs, without hashlib: hashlib loads OpenSSL, which takes 3 ms at the start of each command.

The digest is the same. For large inputs use hashlib, which is five times as fast. The module `random` of Python imports
SHA-2 in the same way.
"""

from __future__ import annotations

try:
    from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # not CPython
        from hashlib import sha256

__all__ = ["sha256"]
