"""Where the door is, as words of a command line and as a file that the next master reads.

`sshgrid master start --listen ADDRESS --ssh-port N` is said once: a master that is started later, by `run` for example,
opens the same door. Refuses a file that is not ours alone.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import os
import stat

import msgspec

from sshgrid.errors import StoreError, UsageError
from sshgrid.model import Struct
from sshgrid.paths import not_private

PORT = 4200
NAME = "door.json"


class GatewayAddress(Struct, frozen=True):
    """Where to listen."""

    listen: str
    port: int = PORT


def chosen(listen: str | None, port: int | None, state_dir: str) -> GatewayAddress | None:
    """What the words say, remembered for the next master; without words what was remembered. "none" forgets it."""
    path = os.path.join(state_dir, NAME)
    if listen == "none":
        if os.path.lexists(path):
            os.unlink(path)
        return None
    if listen is None and port is None:
        return remembered(state_dir)
    front = GatewayAddress(listen or "127.0.0.1", PORT if port is None else port)
    aside = f"{path}.new"
    with open(
        os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb"
    ) as file:
        file.write(msgspec.json.encode(front))
    os.replace(aside, path)
    return front


def remembered(state_dir: str) -> GatewayAddress | None:
    """What an earlier start said. StoreError when it cannot be trusted."""
    path = os.path.join(state_dir, NAME)
    try:
        if complaint := not_private(os.lstat(path), stat.S_ISREG):
            raise StoreError(f"{path} {complaint}", "sshgrid master start --listen ADDRESS")
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(4096), type=GatewayAddress)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"{path}: {error}", "sshgrid master start --listen ADDRESS") from error


def port(text: str) -> int:
    """UsageError when it is none."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise UsageError(f"not a port: {text!r}", f"--ssh-port {PORT}")
    return int(text)
