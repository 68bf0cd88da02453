"""Public keys and passwords of accounts: keys are checked for their kind and length, passwords kept as Argon2id hashes.

A hash is slow on purpose. It is computed in one of two threads, so the event loop continues; when too many passwords
wait for a thread, a further one is refused with Busy.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cryptography.exceptions import InvalidKey, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from sshgrid.errors import SshgridError, UsageError
from sshgrid.model import UserKey

THREADS = 2
QUEUE = 16
MAX_PASSWORD_BYTES = 1024
MIN_PASSWORD_LETTERS = 8
MIN_RSA_BITS = 2048
MAX_KEY_LINE = 16_384
KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
# RFC 9106, section 4: the second recommended choice, on one lane, so that a hash stays on one thread.
_MEMORY_KIB = 65_536
_PASSES = 2
T = TypeVar("T")


class Busy(SshgridError):
    """Too many passwords are being checked."""

    code = "busy"


class Passwords:
    """Hashes and checks passwords, THREADS at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="password")
        self._waiting = 0
        self._other_hash = ""  # that of a random password: checked when an account has none or does not exist

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The PHC string to store. Raises UsageError when the password is too short or too long; Busy."""
        if len(password) < MIN_PASSWORD_LETTERS or len(password.encode()) > MAX_PASSWORD_BYTES:
            most = MAX_PASSWORD_BYTES
            raise UsageError(f"a password has at least {MIN_PASSWORD_LETTERS} characters and at most {most} bytes")
        return await self._in_thread(lambda: _hash(password.encode()))

    async def fits(self, password: str, kept: str) -> bool:
        """Whether `password` has the hash `kept`; "" takes as long and never fits. Raises Busy."""
        if not self._other_hash:
            self._other_hash = await self._in_thread(lambda: _hash(os.urandom(32)))
        secret = password.encode("utf-8", "surrogatepass")[: MAX_PASSWORD_BYTES + 1]
        fits = await self._in_thread(lambda: _fits(secret, kept or self._other_hash))
        return fits and bool(kept)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._waiting >= THREADS + QUEUE:
            raise Busy("too many passwords are being checked; try again")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def _hash(secret: bytes) -> str:
    made = Argon2id(salt=os.urandom(16), length=32, iterations=_PASSES, lanes=1, memory_cost=_MEMORY_KIB)
    return made.derive_phc_encoded(secret)


def _fits(secret: bytes, kept: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(secret, kept)
    except InvalidKey:
        return False
    return True


# --- public keys ------------------------------------------------------------------------------------------------------


def public_key(line: str) -> UserKey:
    """The key in one line as in authorized_keys, without options. Raises UsageError."""
    if "PRIVATE KEY" in line:
        raise UsageError("this is a private key: keep it secret", "use the file that ends in .pub")
    words = line.strip().split(None, 2)
    if len(line) > MAX_KEY_LINE or len(words) < 2 or not line.isprintable():
        raise UsageError("not a public key", "a line such as: ssh-ed25519 AAAA... ana@laptop")
    kind, encoded, *comment = words
    if kind not in KEY_TYPES:
        raise UsageError(f"not a kind of key that is supported: {kind[:40]}", "ssh-keygen -t ed25519")
    blob = _blob(kind, encoded)
    _check_strength(kind, encoded)
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return UserKey(f"SHA256:{digest}", " ".join([kind, encoded, *comment]))


def _blob(kind: str, encoded: str) -> bytes:
    """The bytes of the key, which begin with the name of its kind (RFC 4253, section 6.6)."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise UsageError(f"the key is truncated or damaged: {error}") from error
    name = kind.encode()
    if not blob.startswith(len(name).to_bytes(4, "big") + name):
        raise UsageError(f"the key is damaged: it is not a key of kind {kind}")
    return blob


def _check_strength(kind: str, encoded: str) -> None:
    if kind.startswith("sk-"):  # of a hardware token: cryptography does not read it, and there is one size
        return
    try:
        key = load_ssh_public_key(f"{kind} {encoded}".encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"the key is damaged: {error}") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise UsageError(f"an RSA key of {key.key_size} bits is too short", "ssh-keygen -t ed25519")
