"""What a user logs in with: public keys that are worth something, and passwords that are kept as Argon2id hashes.

Hashing is costly on purpose, so it happens in two threads with a short queue before them, and the loop goes on. Refuses
a guess that would have to queue behind too many others, and keys that are short or of a kind that is no longer trusted.
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
    """So many passwords are being checked that this one is not looked at."""

    code = "busy"


class Passwords:
    """Hashes and checks passwords, two at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="password")
        self._waiting = 0
        self._nobody = ""  # a hash that no password fits: for users that do not exist

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The PHC text to keep. UsageError when it is too short or too long, Busy."""
        if len(password) < MIN_PASSWORD_LETTERS or len(password.encode()) > MAX_PASSWORD_BYTES:
            raise UsageError(f"a password has {MIN_PASSWORD_LETTERS} letters or more, up to {MAX_PASSWORD_BYTES} bytes")
        return await self._in_thread(lambda: _hash(password.encode()))

    async def fits(self, password: str, kept: str) -> bool:
        """Whether this is the password; takes as long for a user who has none, or does not exist. Busy."""
        if not self._nobody:
            self._nobody = await self._in_thread(lambda: _hash(os.urandom(32)))
        secret = password.encode("utf-8", "surrogatepass")[: MAX_PASSWORD_BYTES + 1]
        fits = await self._in_thread(lambda: _fits(secret, kept or self._nobody))
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


def public_keys(text: str) -> list[UserKey]:
    """The keys of a file: one .pub, or lines as in authorized_keys. UsageError when it holds none, or one of no use."""
    lines = [line.strip() for line in text.splitlines()]
    found = [public_key(line) for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError("there is no public key in it", "ssh-keygen -t ed25519; then give the file that ends in .pub")
    return found


def public_key(line: str) -> UserKey:
    """One line as in authorized_keys, without options. UsageError says what is wrong with it."""
    if "PRIVATE KEY" in line:
        raise UsageError("this is a private key: keep it", "give the file that ends in .pub")
    words = line.strip().split(None, 2)
    if len(line) > MAX_KEY_LINE or len(words) < 2 or not line.isprintable():
        raise UsageError("not a public key", "a line such as: ssh-ed25519 AAAA... ana@laptop")
    kind, encoded, *comment = words
    if kind not in KEY_TYPES:
        raise UsageError(f"not a kind of key that is taken here: {kind[:40]}", "ssh-keygen -t ed25519")
    blob = _blob(kind, encoded)
    _check_strength(kind, encoded)
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return UserKey(f"SHA256:{digest}", " ".join([kind, encoded, *comment]))


def _blob(kind: str, encoded: str) -> bytes:
    """The key's bytes, which begin with the name of their kind (RFC 4253, section 6.6)."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise UsageError(f"the key is cut or damaged: {error}") from error
    name = kind.encode()
    if not blob.startswith(len(name).to_bytes(4, "big") + name):
        raise UsageError(f"the key is damaged: it is no {kind}")
    return blob


def _check_strength(kind: str, encoded: str) -> None:
    if kind.startswith("sk-"):  # of a hardware token: cryptography does not read them, and they are of one size
        return
    try:
        key = load_ssh_public_key(f"{kind} {encoded}".encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"the key is damaged: {error}") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise UsageError(f"an RSA key of {key.key_size} bits is too short", "ssh-keygen -t ed25519")
