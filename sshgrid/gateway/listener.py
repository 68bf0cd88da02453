"""The listening socket of the SSH gateway, its host key, and the algorithms that it accepts.

Only algorithms that are considered secure today are offered. A host key that other users can read is an error.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

import asyncssh
from asyncssh.kex import get_kex_algs

from sshgrid.errors import StoreError

KEY_FILE = "gateway_host_key"
OLD_KEY_FILE = "door_host_key"  # the name of this file in earlier versions
MOST_OPEN_FILES = 65_536

# No Diffie-Hellman over finite fields: a client without a login could make the server compute with them for ever. The
# algorithm that the client prefers is used; curve25519 is first because dropbear sends a guess at once, which asyncssh
# and dropbear judge differently when another one is first.
KEX = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "mlkem768x25519-sha256",
    "sntrup761x25519-sha512@openssh.com",
)
CIPHERS = (
    "chacha20-poly1305@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-gcm@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
)
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com")
SIGNATURES = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
)


def algorithms() -> dict[str, Sequence[str]]:
    """The algorithms by the names of asyncssh's options."""
    return {
        "kex_algs": [name for name in KEX if name.encode() in get_kex_algs()],
        "encryption_algs": CIPHERS,
        "mac_algs": MACS,
        "signature_algs": SIGNATURES,
        "compression_algs": ["none"],
    }


def load_host_key(state: Path) -> asyncssh.SSHKey:
    """The host key in the state folder; a new one when there is none. Raises StoreError when others can read it."""
    path = state / KEY_FILE
    if not path.exists() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            (state / OLD_KEY_FILE).rename(path)  # a new key would look like another server to every client
    if not path.exists():
        _create_host_key(path)
    found = path.lstat()
    if found.st_mode & 0o077 or found.st_uid != os.getuid():
        raise StoreError(f"{path}: the host key of the SSH gateway can be read by others", f"chmod 600 {path}")
    try:
        return asyncssh.read_private_key(path)
    except (asyncssh.KeyImportError, OSError) as error:
        raise StoreError(
            f"{path}: not a host key: {error}",
            "move it away: the next start creates a new key, which clients must accept",
        ) from error


def _create_host_key(path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519", comment="sshgrid")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.export_private_key())
        os.fsync(descriptor)


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free port. Raises StoreError."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        message = f"the SSH gateway cannot listen at {address} port {port}: {error}"
        raise StoreError(message, "--listen, --ssh-port") from error
    listener.setblocking(False)
    return listener


def raise_open_files_limit() -> None:
    """Raise the soft limit of open files: a command takes eight descriptors, and the usual 1024 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
