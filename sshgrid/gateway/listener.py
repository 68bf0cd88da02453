"""What the door is made of: its listening socket, its host key, and the algorithms that it takes.

Refuses a host key that others can read, and every algorithm that is no longer thought to be good.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

import asyncssh
from asyncssh.kex import get_kex_algs

from sshgrid.errors import StoreError

# No finite fields: a stranger could have us compute with them for ever. What the client likes best is taken; ours comes
# first because dropbear sends its guess at once, and asyncssh and dropbear judge a guess differently otherwise.
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
    """As asyncssh names its options."""
    return {
        "kex_algs": [name for name in KEX if name.encode() in get_kex_algs()],
        "encryption_algs": CIPHERS,
        "mac_algs": MACS,
        "signature_algs": SIGNATURES,
        "compression_algs": ["none"],
    }


def host_key(path: Path) -> asyncssh.SSHKey:
    """Made when it is missing; refused when others can read it."""
    if not path.exists():
        made = asyncssh.generate_private_key("ssh-ed25519", comment="sshgrid")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(made.export_private_key())
            os.fsync(descriptor)
    found = path.lstat()
    if found.st_mode & 0o077 or found.st_uid != os.getuid():
        raise StoreError(f"{path}: the door's host key can be read by others", f"chmod 600 {path}")
    try:
        return asyncssh.read_private_key(path)
    except (asyncssh.KeyImportError, OSError) as error:
        raise StoreError(
            f"{path}: not a host key: {error}", "move it away; a new one is made, and clients must be told"
        ) from error


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any that is free. StoreError."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.create_server((address, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise StoreError(f"the door cannot listen at {address} port {port}: {error}", "--listen, --ssh-port") from error
    made.setblocking(False)
    return made


def raise_open_files() -> None:
    """A command through the door takes eight descriptors, and the usual 1024 would not be enough for all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def hang_up(sock: socket.socket) -> None:
    """The other end notices; whoever holds the socket here too."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


async def speaks(sock: socket.socket, seconds: float) -> bool:
    """Whether something comes within this time; it is not taken."""
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, heard.set)
    try:
        async with asyncio.timeout(seconds):
            await heard.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(sock)
    return True
