"""The address of the SSH gateway: read from command-line options, and remembered for the next master.

`sshgrid master start --listen ADDRESS --ssh-port N` is given once: a master that starts later, by `run` for example,
listens at the same address. A remembered file that other users can write is an error.
"""
# os.path, not pathlib (see per-file-ignores): the command line imports this, and pathlib costs 5 ms.

from __future__ import annotations

import contextlib
import os
import stat

import msgspec

from sshgrid.errors import StoreError
from sshgrid.model import Struct
from sshgrid.paths import not_private

PORT = 4200
FILE = "gateway.json"
OLD_FILE = "door.json"  # the name of this file in earlier versions


class GatewayAddress(Struct, frozen=True):
    """Where the gateway listens."""

    listen: str
    port: int = PORT


def choose(listen: str | None, port: int | None, state_dir: str) -> GatewayAddress | None:
    """The address that the options give, which is remembered; without options the remembered one.

    `listen` "none" removes the remembered address. None: no gateway. Raises StoreError.
    """
    path = _path(state_dir)
    if listen == "none":
        if os.path.lexists(path):
            os.unlink(path)
        return None
    if listen is None and port is None:
        return load(state_dir)
    address = GatewayAddress(listen or "127.0.0.1", PORT if port is None else port)
    temporary = f"{path}.new"
    with open(
        os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb"
    ) as file:
        file.write(msgspec.json.encode(address))
    os.replace(temporary, path)
    return address


def load(state_dir: str) -> GatewayAddress | None:
    """The remembered address. Raises StoreError when the file cannot be read or can be written by other users."""
    path = _path(state_dir)
    try:
        if complaint := not_private(os.lstat(path), stat.S_ISREG):
            raise StoreError(f"{path} {complaint}", "sshgrid master start --listen ADDRESS")
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(4096), type=GatewayAddress)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"{path}: {error}", "sshgrid master start --listen ADDRESS") from error


def _path(state_dir: str) -> str:
    """The file; one of the old name is renamed first."""
    path, old = os.path.join(state_dir, FILE), os.path.join(state_dir, OLD_FILE)
    if not os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):
            os.rename(old, path)
    return path
