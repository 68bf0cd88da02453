"""Finds the inventory, and the state folder, socket, lock and log of each inventory. Paths are strings.

Nothing is created here. An `./inventory.yaml` that other users can write is not used, as it names the hosts that get
the user's programs. Socket paths fit into the 108 bytes that a Unix socket allows.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from sshgrid.errors import InventoryError, StoreError
from sshgrid.model import Struct
from sshgrid.notation.digest import sha256

INVENTORY = "inventory.yaml"
PACKAGE_DIR = os.path.dirname(os.path.abspath(__file__))  # the folder of the package `sshgrid`
MAX_SOCKET_BYTES = 100


class Places(Struct, frozen=True):
    """Absolute paths. `lock` is held by a client while it starts a master; the master itself must not take it."""

    inventory: str
    inventory_source: str  # "-i" | "environment" | "current folder" | "config" | "default" (does not exist yet)
    state_dir: str  # mode 0700, for this inventory only
    state_source: str
    socket: str
    lock: str
    log: str
    config_dir: str
    notes: tuple[str, ...] = ()  # why a file was not used


def places(
    inventory_flag: str | None,
    environ: Mapping[str, str],
    cwd: str,
    home: str,
    *,
    state_flag: str | None = None,
    must_exist: bool = True,
) -> Places:
    """Find the inventory and the paths that belong to it. InventoryError when it does not exist but `must_exist`."""
    config_dir = _config_dir(environ, home)
    inventory, source, notes = _inventory(inventory_flag, environ, cwd, config_dir)
    if must_exist and not os.path.exists(inventory):
        raise _no_inventory(inventory, source, notes)
    inventory = os.path.realpath(inventory)
    mark = sha256(os.fsencode(inventory)).hexdigest()[:16]
    state_dir, state_source = _state_dir(state_flag, environ, cwd, home, mark)
    return Places(
        inventory=inventory,
        inventory_source=source,
        state_dir=state_dir,
        state_source=state_source,
        socket=_socket(state_dir, environ),
        lock=os.path.join(state_dir, "start.lock"),
        log=os.path.join(state_dir, "master.log"),
        config_dir=config_dir,
        notes=notes,
    )


def private_dir(path: str) -> None:
    """Create a folder that only this user can use. StoreError: another user could replace the socket in it."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", "sshgrid doctor") from error
    if reason := not_private(found, stat.S_ISDIR):
        raise StoreError(f"{path} {reason}", f"ls -ld {path}; move it away, or set SSHGRID_HOME to a folder of yours")


def not_private(found: os.stat_result, is_kind: Callable[[int], bool]) -> str:
    """Why other users could change this entry, "" if they cannot; `is_kind` is a function such as stat.S_ISDIR."""
    if not is_kind(found.st_mode):
        return "has the wrong type (a link, or another kind of file)"
    if found.st_uid != os.getuid():
        return f"belongs to another user (uid {found.st_uid})"
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _config_dir(environ: Mapping[str, str], home: str) -> str:
    if own := environ.get("SSHGRID_HOME"):
        return os.path.abspath(own)
    return os.path.join(environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "sshgrid")


def _inventory(
    flag: str | None, environ: Mapping[str, str], cwd: str, config_dir: str
) -> tuple[str, str, tuple[str, ...]]:
    if flag:
        return os.path.join(cwd, os.path.expanduser(flag)), "-i", ()
    if named := environ.get("SSHGRID_INVENTORY"):
        return os.path.join(cwd, os.path.expanduser(named)), "environment", ()
    here, notes = os.path.join(cwd, INVENTORY), tuple[str, ...]()
    if os.path.exists(here):
        reason = _others_can_write(cwd) or _others_can_write(here)
        if not reason:
            return here, "current folder", ()
        notes = (f"./{INVENTORY} is not used: {reason}; to use it anyway, name it with -i",)
    config = os.path.join(config_dir, INVENTORY)
    return config, "config" if os.path.exists(config) else "default", notes


def _others_can_write(path: str) -> str:
    found = os.stat(path)
    if found.st_uid not in (os.getuid(), 0):
        return f"{path} belongs to another user"
    return f"others can write {path}" if found.st_mode & 0o022 else ""


def _no_inventory(path: str, source: str, notes: tuple[str, ...]) -> InventoryError:
    if source == "default":
        looked = f"no inventory: neither ./{INVENTORY} nor {path} exists"
        return InventoryError("\n".join((looked, *notes)), "sshgrid node add NAME [USER@]HOST")
    named = "SSHGRID_INVENTORY" if source == "environment" else source
    return InventoryError(
        f"no such inventory: {path} (named by {named})", f"sshgrid -i {path} node add NAME [USER@]HOST"
    )


def _state_dir(flag: str | None, environ: Mapping[str, str], cwd: str, home: str, mark: str) -> tuple[str, str]:
    if flag:
        return os.path.abspath(os.path.join(cwd, os.path.expanduser(flag))), "--state-dir"
    if named := environ.get("SSHGRID_STATE_DIR"):
        return os.path.abspath(os.path.join(cwd, os.path.expanduser(named))), "SSHGRID_STATE_DIR"
    if own := environ.get("SSHGRID_HOME"):
        return os.path.join(os.path.abspath(own), "state", mark), "SSHGRID_HOME"
    if xdg := environ.get("XDG_STATE_HOME"):
        return os.path.join(xdg, "sshgrid", mark), "XDG_STATE_HOME"
    return os.path.join(home, ".local", "state", "sshgrid", mark), "default"


def _socket(state_dir: str, environ: Mapping[str, str]) -> str:
    plain = os.path.join(state_dir, "master.sock")
    if len(os.fsencode(plain)) <= MAX_SOCKET_BYTES:
        return plain
    mark = sha256(os.fsencode(state_dir)).hexdigest()[:16]
    runtime = environ.get("XDG_RUNTIME_DIR") or "/tmp"  # private_dir checks the folder in it
    return os.path.join(runtime, f"sshgrid-{os.getuid()}", f"{mark}.sock")
